"""Classifiers as others load them: transformers' classes and pipeline, sentence-transformers."""

import importlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from safetensors.numpy import load_file
from scipy.special import softmax
from tiny import SPECIAL, TINY, WORDS, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ftjax.config import base_config, override  # noqa: E402
from ftjax.models.heads import PublishedClassifier, TextClassifier  # noqa: E402
from ftjax.pretrained.classifier import load_classifier, published_classes  # noqa: E402
from ftjax.training.build import build  # noqa: E402
from ftjax.training.run import run  # noqa: E402
from ftjax.use.finished import load_finished_run  # noqa: E402
from ftjax.use.predict import Predictor  # noqa: E402

TEXTS = ["word1 word2 word3", "word21 word22 " * 4, "word50 word7 word41 word59 word3"]
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
ROBERTA = BERT | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
LLAMA = BERT | {"num_key_value_heads": 1, "eos_token_id": 3, "bos_token_id": 2}
# Family -> fields of transformers' config.
FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "electra": BERT | {"embedding_size": 12},
    "deberta-v2": BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": BERT | {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "llama": LLAMA,
    "gemma3_text": LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "albert": BERT | {"embedding_size": 12},
    "mpnet": BERT | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "mistral": LLAMA,
    "qwen3": LLAMA | {"head_dim": 8},
    "phi3": LLAMA | {"pad_token_id": 0},
    "gemma": LLAMA | {"head_dim": 8},
    "gemma2": LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8},
}
DECODERS = ("gpt2", "llama", "gemma3_text", "mistral", "qwen3", "phi3", "gemma", "gemma2")
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
# In another order than the data's a, b, c, and spelled otherwise.
NAMES = {"id2label": {0: "C", 1: "a", 2: "B"}, "label2id": {"C": 0, "a": 1, "B": 2}}


def write_published(folder, family, kind, **fields):
    """A random checkpoint as transformers saves it, with a tokenizer."""
    torch.manual_seed(0)
    fields = {**FAMILIES, "t5": T5}[family] | fields
    config = transformers.AutoConfig.for_model(family, vocab_size=len(SPECIAL + WORDS), **fields)
    model = getattr(transformers, f"AutoModel{kind}").from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "classifier" in name or "score" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    write_tokenizer(folder, with_end=family in DECODERS)
    return folder


@pytest.fixture
def config_of(tiny_texts):
    """(folder, what is changed) -> config of a run of seconds."""

    def make(folder, **changes):
        files = {"model.reference": str(folder), "data.source": str(tiny_texts)}
        quick = {"retention.enabled": False, "evaluation.baselines": False, "training.epochs": 1}
        values = TINY | files | quick | {"optimizer.learning_rate": 3e-3}
        return override(base_config(), values | changes)

    return make


def trained(config, folder):
    """What is printed, and the logits of `TEXTS`."""
    said = io.StringIO()
    run(config, folder, Console(file=said, width=1000))
    return said.getvalue(), Predictor(folder).outputs([{"text": text} for text in TEXTS])


def exported(run_folder, folder):
    finished = load_finished_run(run_folder)
    finished.objective.export(finished.network, folder)
    return folder


def started(config, noise=0.0):
    """Objective, network and logits of `TEXTS` before any step; noise in place of training."""
    parts = build(config)
    random = np.random.default_rng(0)
    moved = {
        path: value + jnp.asarray(noise * random.normal(size=value.shape), value.dtype)
        for path, value in parts.trainable.items()
    }
    network = parts.rebuild(moved, parts.frozen)
    examples = parts.objective.prediction_examples([{"text": text} for text in TEXTS])
    batch = examples.batch(np.arange(len(TEXTS)), rows=len(TEXTS), length=16)
    graphdef, state = nnx.split(network)
    logits = jax.jit(lambda state: nnx.merge(graphdef, state)(batch))(state)
    return parts.objective, network, np.asarray(logits)


def of_pipeline(folder, **options):
    """Probabilities of `TEXTS` as transformers has them, and the classes in their order."""
    classify = transformers.pipeline("text-classification", str(folder), top_k=None)
    names = [classify.model.config.id2label[i] for i in range(3)]
    found = classify(TEXTS, **options)
    rows = [{score["label"]: score["score"] for score in scores} for scores in found]
    return np.array([[row[name] for name in names] for row in rows]), names


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_of_the_published_form_is_loaded_by_transformers(tmp_path, config_of, family):
    base = write_published(tmp_path / "base", family, "")
    config = config_of(base, **{"model.head": "published"})
    objective, network, logits = started(config, noise=0.2)
    folder = tmp_path / "out"
    objective.export(network, folder)
    for batch_size in (1, 3):
        theirs, names = of_pipeline(folder, batch_size=batch_size)
        assert names == ["a", "b", "c"]
        np.testing.assert_allclose(theirs, softmax(logits, -1), atol=1e-5)
    model, problems = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(problems.values()), problems
    fields = json.loads((folder / "config.json").read_text())
    assert fields["architectures"] == [type(model).__name__]
    assert fields["problem_type"] == "single_label_classification"
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_head_is_begun_from_in_its_own_order(tmp_path, config_of, family):
    pad = {"pad_token_id": 3} if family in DECODERS else {}
    base = write_published(tmp_path / "base", family, "ForSequenceClassification", **NAMES, **pad)
    objective, _, logits = started(config_of(base, **{"model.head": "published"}))
    assert objective.classes == ["c", "a", "b"]
    theirs, order = of_pipeline(base)
    assert order == ["C", "a", "B"]
    np.testing.assert_allclose(softmax(logits, -1), theirs, atol=1e-5)


def test_a_published_head_adapted_merged_and_begun_from_again(tmp_path, config_of):
    base = write_published(tmp_path / "base", "roberta", "ForSequenceClassification", **NAMES)
    published = {"model.head": "published", "tuning.method": "lora"}
    said, logits = trained(config_of(base, **published), tmp_path / "run")
    assert "own head is kept, for c, a, b" in said
    result = load_finished_run(tmp_path / "run").result
    assert "test/pretrained/accuracy" in result.metrics
    folder = exported(tmp_path / "run", tmp_path / "out")
    theirs, names = of_pipeline(folder)
    assert names == ["c", "a", "b"]
    np.testing.assert_allclose(theirs, softmax(logits, -1), atol=1e-5)
    assert not np.allclose(theirs, of_pipeline(base)[0], atol=1e-3)
    objective, _, again = started(config_of(folder, **{"model.head": "published"}))
    assert objective.classes == ["c", "a", "b"]
    np.testing.assert_allclose(again, logits, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_our_head_on_the_pooler_is_the_familys_own(tmp_path, config_of, family):
    base = write_published(tmp_path / "base", family, "")
    objective, network, logits = started(config_of(base, **{"model.pooling": "pooler"}), noise=0.2)
    folder = tmp_path / "out"
    objective.export(network, folder)
    np.testing.assert_allclose(of_pipeline(folder)[0], softmax(logits, -1), atol=1e-5)
    assert isinstance(load_classifier(folder), PublishedClassifier)


def encoded(folder):
    """What the modules give for `TEXTS`, read as sentence-transformers' documentation has them."""
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["idx"] for module in modules] == [0, 1, 2]
    kinds = [module["type"].removeprefix("sentence_transformers.models.") for module in modules]
    assert kinds == ["Transformer", "Pooling", "Dense"]
    pooling, dense = (
        json.loads((folder / module["path"] / "config.json").read_text()) for module in modules[1:]
    )
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    inputs = tokenizer(TEXTS, **options)
    inputs.pop("token_type_ids", None)
    fields = transformers.AutoConfig.from_pretrained(folder)
    is_t5 = fields.model_type == "t5"
    kind = transformers.T5EncoderModel if is_t5 else transformers.AutoModel
    assert fields.architectures == [kind.from_pretrained(folder).__class__.__name__]
    with torch.no_grad():
        hidden = kind.from_pretrained(folder).eval()(**inputs).last_hidden_state
        mask = inputs["attention_mask"]
        on = [name for name, value in pooling.items() if value is True]
        if on == ["pooling_mode_mean_tokens"]:
            weights = mask[..., None].float()
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        elif on == ["pooling_mode_cls_token"]:
            pooled = hidden[:, 0]
        else:
            assert on == ["pooling_mode_lasttoken"]
            pooled = hidden[torch.arange(len(TEXTS)), mask.sum(1) - 1]
        path, _, name = dense["activation_function"].rpartition(".")
        activation = getattr(importlib.import_module(path), name)()
        linear = torch.nn.Linear(dense["in_features"], dense["out_features"], bias=dense["bias"])
        tensors = load_file(folder / modules[2]["path"] / "model.safetensors")
        state = {n.removeprefix("linear."): torch.tensor(t) for n, t in tensors.items()}
        linear.load_state_dict(state)
        assert pooling["word_embedding_dimension"] == dense["in_features"] == pooled.shape[1]
        return activation(linear(pooled)).numpy()


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "mean"),
        ("modernbert", "first"),
        ("gpt2", "last"),
        ("llama", "mean"),
        ("t5", "mean"),
    ],
)
def test_our_head_is_written_as_modules_of_sentence_transformers(
    tmp_path, config_of, family, pooling
):
    kind = {"gpt2": "ForCausalLM", "t5": "ForSeq2SeqLM"}.get(family, "")
    base = write_published(tmp_path / "base", family, kind)
    objective, network, logits = started(config_of(base, **{"model.pooling": pooling}), noise=0.2)
    folder = tmp_path / "out"
    objective.export(network, folder)
    np.testing.assert_allclose(encoded(folder), logits, atol=1e-5)
    assert isinstance(load_classifier(folder), TextClassifier)
    assert published_classes(folder) == ("a", "b", "c")
    objective, _, again = started(config_of(folder, **{"model.head": "published"}))
    assert objective.classes == ["a", "b", "c"]
    np.testing.assert_allclose(again, logits, atol=1e-5)
