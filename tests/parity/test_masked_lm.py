"""The loss of masked tokens against transformers' networks, and exports that they load."""

import jax
import numpy as np
import pytest
from compare import assert_same_gradients
from tiny import write_subword_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ftjax.data.masked import masked_examples  # noqa: E402
from ftjax.data.sources import Records  # noqa: E402
from ftjax.data.tokenizer import load_tokenizer  # noqa: E402
from ftjax.losses import tokens  # noqa: E402
from ftjax.losses.forward import forward  # noqa: E402
from ftjax.models import family_of  # noqa: E402
from ftjax.models.masked_language_model import MaskedLanguageModel  # noqa: E402
from ftjax.pretrained.export import export, published_tensors  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.tuning.partition import partition  # noqa: E402

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
DISTILBERT = {
    "vocab_size": 64,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 48,
    "initializer_range": 0.2,
}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
    "type_vocab_size": 0,
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
MODELS = {
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM, SIZE),
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaForMaskedLM,
        SIZE | {"pad_token_id": 1},
    ),
    "distilbert": (transformers.DistilBertConfig, transformers.DistilBertForMaskedLM, DISTILBERT),
    "electra": (
        transformers.ElectraConfig,
        transformers.ElectraForMaskedLM,
        SIZE | {"embedding_size": 16},
    ),
    "modernbert": (
        transformers.ModernBertConfig,
        transformers.ModernBertForMaskedLM,
        SIZE | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        transformers.DebertaV2ForMaskedLM,
        SIZE | DEBERTA,
    ),
}


def checkpoint(folder, name):
    config, model, fields = MODELS[name]
    torch.manual_seed(0)
    model = model(config(**fields)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    write_subword_tokenizer(folder)
    return model


def examples_of(folder, texts, length):
    records = Records("texts", [{"text": text} for text in texts])
    tokenizer = load_tokenizer(folder)
    return masked_examples(records, tokenizer, length, share=0.3, whole_words=False)


def some_texts():
    random = np.random.default_rng(0)
    sizes = (9, 4, 2, 7)
    return [" ".join(f"word{n}" for n in random.integers(0, 99, size)) for size in sizes]


def torchs_inputs(batch, pad):
    """One row for each text, padded; labels as transformers' collators have them."""
    rows = []
    for ids, segments, at, labels, weights in zip(
        *(batch[n] for n in ("input_ids", "segment_ids", "masked_positions", "labels", "weights")),
        strict=True,
    ):
        wanted = np.full(len(ids), -100)
        wanted[at[weights > 0]] = labels[weights > 0]
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            rows.append((ids[here], wanted[here]))
    length = max(len(ids) for ids, _ in rows)
    inputs = {
        "input_ids": np.full((len(rows), length), pad),
        "attention_mask": np.zeros((len(rows), length), int),
        "labels": np.full((len(rows), length), -100),
    }
    for row, (ids, wanted) in enumerate(rows):
        inputs["input_ids"][row, : len(ids)] = ids
        inputs["attention_mask"][row, : len(ids)] = 1
        inputs["labels"][row, : len(ids)] = wanted
    return {name: torch.tensor(value) for name, value in inputs.items()}


@pytest.mark.parametrize("name", MODELS)
def test_packed_texts_have_the_loss_and_gradients_of_the_texts_alone(tmp_path, name):
    theirs = checkpoint(tmp_path, name)
    examples = examples_of(tmp_path, some_texts(), 40)
    rows = len(examples.lengths)
    assert examples.packed.segment_ids.max() > 1
    batch = examples.batch(np.arange(rows), rows=rows + 1, length=40)
    backbone = load_model(tmp_path, "masked_lm")
    rebuild, trainable, frozen = partition(MaskedLanguageModel(backbone), lambda path: True)

    def loss(trainable):
        passed = forward(lambda values, _: rebuild(values, frozen), trainable, frozen, batch, None)
        total, weight, _ = tokens.loss(passed.outputs, batch)
        return total / weight

    value, gradients = jax.value_and_grad(loss)(trainable)
    reference = theirs(**torchs_inputs(batch, theirs.config.pad_token_id))
    reference.loss.backward()
    assert float(value) == pytest.approx(float(reference.loss.detach()), abs=1e-5)
    family = family_of(theirs.config.model_type)
    found = dict(published_tensors(rebuild(gradients, frozen).backbone, family))
    assert_same_gradients(found, theirs)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_an_export_is_what_transformers_guesses_with(tmp_path, name):
    """Pretraining continued, written, and loaded by transformers with its head."""
    checkpoint(tmp_path / "base", name)
    network = load_model(tmp_path / "base", "masked_lm")
    rebuild, trainable, frozen = partition(network, lambda path: True)
    random = np.random.default_rng(0)
    moved = {p: v + 0.01 * random.normal(size=v.shape).astype("f") for p, v in trainable.items()}
    network = rebuild(moved, frozen)
    export(network, "masked_lm", tmp_path / "base", tmp_path / "out")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    ids = np.random.default_rng(1).integers(5, 26, (2, 12))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(network(ids).logits, expected, atol=2e-5)
