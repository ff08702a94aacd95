"""Writing texts against transformers: labels' loss, its gradients, greedy texts, exports."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import assert_same_gradients
from rich.console import Console
from tiny import TINY, WORDS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.trainer_pt_utils import LabelSmoother  # noqa: E402

from ftjax.config import base_config, override  # noqa: E402
from ftjax.losses import tokens  # noqa: E402
from ftjax.models import family_of  # noqa: E402
from ftjax.models.heads import TokenOutputs  # noqa: E402
from ftjax.models.sampling import Sampling  # noqa: E402
from ftjax.models.text_to_text import (  # noqa: E402
    DecoderTextToText,
    EncoderDecoderTextToText,
)
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.training.run import run  # noqa: E402
from ftjax.tuning.partition import partition  # noqa: E402
from ftjax.use.finished import load_finished_run  # noqa: E402
from ftjax.use.predict import Predictor  # noqa: E402

START, END, FIRST = 3, 2, 8
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
T5 |= {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 0, "dropout_rate": 0}
BART = {
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
    "vocab_size": 64,
    "d_model": 32,
    "max_position_embeddings": 24,
    "dropout": 0,
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": END,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 32}
GPT2 |= {f"{part}_pdrop": 0 for part in ("resid", "embd", "attn")}
GPT2 |= {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
KINDS = {
    "t5": (transformers.T5Config, T5),
    "t5 v1.1": (
        transformers.T5Config,
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": (transformers.BartConfig, BART),
    "llama": (transformers.LlamaConfig, LLAMA),
    "gpt2": (transformers.GPT2Config, GPT2),
}
SOURCES, TARGETS = (9, 4, 1, 6), (5, 7, 3, 1)


@pytest.fixture(params=KINDS)
def both(request, tmp_path):
    """(theirs, ours) of one random checkpoint."""
    config_class, fields = KINDS[request.param]
    torch.manual_seed(1)
    config = config_class(**fields)
    encodes = config.is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
    theirs = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Larger than initialised, so that texts are not all the same.
            size = 1.0 if "positions" in name or "wpe" in name else 0.2
            parameter.normal_(1 if "norm" in name or "ln_" in name else 0, size)
    theirs.save_pretrained(tmp_path)
    kind = EncoderDecoderTextToText if encodes else DecoderTextToText
    backbone = load_model(tmp_path, "seq2seq_lm" if encodes else "causal_lm")
    return theirs, kind(backbone, decoder_prompt=(START,) if encodes else ())


def batch():
    """Rows of unequal lengths, a source without a target, and nonsense where nothing counts."""
    random = np.random.default_rng(0)
    found = {
        "input_ids": random.integers(4, 64, (5, 12)).astype(np.int32),
        "attention_mask": (np.arange(12) < np.array([[*SOURCES, 3]]).T).astype(np.int32),
        "labels": random.integers(4, 64, (5, 8)).astype(np.int32),
        "weights": (np.arange(8) < np.array([[*TARGETS, 0]]).T).astype(np.float32),
    }
    found["labels"][found["weights"] == 0] = 10**6
    return found


def torchs_inputs(model, rows):
    """The same rows as transformers takes them; a decoder has both in one row."""
    if model.config.is_encoder_decoder:
        labels = np.where(rows["weights"] > 0, rows["labels"], -100)
        found = {**{n: rows[n] for n in ("input_ids", "attention_mask")}, "labels": labels}
        return {name: torch.tensor(value[:4], dtype=torch.long) for name, value in found.items()}
    ids, labels = np.zeros((4, 20), np.int64), np.full((4, 20), -100)
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        ids[row, :source] = rows["input_ids"][row, :source]
        ids[row, source : source + target] = rows["labels"][row, :target]
        labels[row, source : source + target] = rows["labels"][row, :target]
    mask = np.arange(20) < (np.array(SOURCES) + TARGETS)[:, None]
    found = {"input_ids": ids, "attention_mask": mask.astype(int), "labels": labels}
    return {name: torch.tensor(value) for name, value in found.items()}


def test_loss_and_gradients_are_those_of_labels(both):
    theirs, ours = both
    inputs, rows = torchs_inputs(theirs, batch()), batch()
    output = theirs(**inputs)
    output.loss.backward()
    rebuild, trainable, frozen = partition(ours, lambda path: True)

    def mean(trainable, label_smoothing=0.0):
        outputs = rebuild(trainable, frozen)(rows)
        total, weight, _ = tokens.loss(outputs, rows, label_smoothing=label_smoothing)
        return total / weight, outputs.project(outputs.hidden)

    (value, logits), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(trainable)
    assert float(value) == pytest.approx(float(output.loss.detach()), rel=1e-5)
    shift = not theirs.config.is_encoder_decoder
    smoothed = LabelSmoother(0.1)(output, inputs["labels"], shift_labels=shift)
    given = TokenOutputs(logits, lambda logits: logits, 2**25)
    total, weight, _ = tokens.loss(given, rows, label_smoothing=0.1)
    assert float(total / weight) == pytest.approx(float(smoothed.detach()), rel=1e-5)
    family, found = family_of(theirs.config.model_type), {}
    for path, gradient in gradients.items():
        path = path.removeprefix("backbone.")
        name = family.published_name(path, with_prefix=True)
        found[name] = family.to_published(path, np.asarray(gradient))
    assert_same_gradients(found, theirs)


@pytest.mark.parametrize("limits", [{}, {"no_repeat_ngram_size": 1, "min_new_tokens": 5}])
def test_written_tokens_are_transformers_greedy_ones(both, limits):
    theirs, ours = both
    rows = {name: value[:4] for name, value in batch().items()}
    # What theirs are padded with counts as said before, there only.
    sampling = Sampling(**limits, banned_tokens=(0,))
    written = jax.jit(lambda rows: ours.write(rows, 10, sampling, (END, 9, 17, 33)))(rows)
    ids, mask = (torch.tensor(rows[n], dtype=torch.long) for n in ("input_ids", "attention_mask"))
    if not theirs.config.is_encoder_decoder:
        # They continue behind the last column.
        room = [12 - source for source in SOURCES]
        ids = torch.stack([row.roll(by) for row, by in zip(ids * mask, room, strict=True)])
        mask = torch.stack([row.roll(by) for row, by in zip(mask, room, strict=True)])
    options = {"do_sample": False, "num_beams": 1, "eos_token_id": [END, 9, 17, 33], **limits}
    options |= {"forced_eos_token_id": None, "suppress_tokens": [0]}
    with torch.no_grad():
        full = theirs.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=10, pad_token_id=0, **options
        )
    new = full[:, 1:] if theirs.config.is_encoder_decoder else full[:, 12:]
    for found, expected in zip(np.asarray(written).tolist(), new.tolist(), strict=True):
        ends = [i for i, token in enumerate(expected) if token in (END, 9, 17, 33)]
        expected = expected[: ends[0]] if ends else expected
        assert found == expected + [-1] * (10 - len(expected))
    assert not limits or len(np.unique(written)) > 6, "too dull to compare"


def test_an_export_writes_the_same_in_transformers(tmp_path, tiny_t5):
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("validation", 6), ("test", 7)):
        numbers = random.integers(0, 60, (count, 4))
        rows = [
            {"source": " ".join(WORDS[n] for n in row), "target": f"{WORDS[row[0]]} word1"}
            for row in numbers
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "model.reference": str(tiny_t5),
        "data.source": str(tmp_path / "{split}.jsonl"),
        "data.buckets": (8,),
        "data.target_buckets": (8,),
        "retention.enabled": False,
        "evaluation.baselines": False,
        "training.epochs": 2,
    }
    config = override(base_config("seq2seq", "lora"), TINY | settings)
    run(config, tmp_path / "run", Console(file=io.StringIO()))
    finished = load_finished_run(tmp_path / "run")
    finished.objective.export(finished.network, tmp_path / "out")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    sources = ["word1 word2", "word3 word4 word5 word6"]
    found = Predictor(tmp_path / "run")([{"text": source} for source in sources])
    inputs = tokenizer(sources, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=8, num_beams=1, do_sample=False)
        labels = tokenizer(["word7 word8", "word9 word8"], return_tensors="pt")["input_ids"]
        expected = model(**inputs, labels=labels).logits
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert [row["generated_text"] for row in found] == texts
    again = load_finished_run(tmp_path / "run").network
    rows = {name: jnp.asarray(value.numpy(), jnp.int32) for name, value in inputs.items()}
    rows |= {"labels": jnp.asarray(labels.numpy()), "weights": jnp.ones(labels.shape)}
    outputs = again(rows)
    np.testing.assert_allclose(outputs.project(outputs.hidden), expected, atol=1e-5)
