"""A language model tuned on a plain text, from file to result."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from ftjax.config import base_config, override, validate
from ftjax.data.examples import PackedExamples
from ftjax.data.packing import pack
from ftjax.data.text import TokenizedText
from ftjax.losses.tokens import loss as token_loss
from ftjax.models.heads import LanguageModel
from ftjax.pretrained.load import load_model
from ftjax.training.build import build
from ftjax.training.run import run


@pytest.fixture
def text(tmp_path):
    """Sentences that count upwards, with the paragraphs that a language has."""
    random = np.random.default_rng(0)
    starts = random.integers(0, 50, 120)
    paragraphs = [" ".join(f"word{n}" for n in range(s, s + 9)) for s in starts]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(paragraphs))
    return path


@pytest.fixture
def config(tiny_llama, text, tiny_texts):
    return override(
        base_config(),
        {
            "name": "tiny",
            "objective.name": "causal_lm",
            "model.reference": str(tiny_llama),
            "data.source": str(text),
            "data.max_length": 32,
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "training.epochs": 8,
            "retention.source": str(tiny_texts),
        },
    )


def test_perplexity_falls_on_the_text_and_rises_elsewhere(tmp_path, config):
    console = Console(file=io.StringIO(), width=200)
    result = run(config, tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/perplexity"] < 0.3 * metrics["test/pretrained/perplexity"]
    assert metrics["retention/after"] > metrics["retention/before"]
    assert metrics["retention/change"] < 0


def test_packed_rows_have_the_loss_and_gradient_of_the_texts_alone(tiny_llama):
    lengths = [5, 9, 3, 12, 7]
    random = np.random.default_rng(0)
    tokens = TokenizedText(
        random.integers(4, 60, sum(lengths)).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        None,
        0,
    )
    network = LanguageModel(load_model(tiny_llama, "causal_lm"))

    def total(width):
        packed = pack(tokens, width)
        rows = len(packed.input_ids)
        batch = PackedExamples(packed, "").batch(np.arange(rows), rows=rows, length=width)
        loss, weight, _ = token_loss(network(batch), batch)
        return rows, float(loss), float(weight)

    together, alone = total(36), []
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        ids = tokens.input_ids[None, start:end]
        logits = network.backbone(ids).logits[0, :-1]
        logs = logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True))
        alone.append(-float(logs[jnp.arange(end - start - 1), ids[0, 1:]].sum()))
    assert together[0] == 1
    assert together[2] == sum(lengths) - len(lengths)
    assert together[1] == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluation.metric": "macro_f1"}, "allowed: one of 'perplexity', 'loss'"),
        ({"model.pooling": "first"}, "read only with objective.name = 'classification'"),
        ({"objective.label_smoothing": 0.1}, "read only with objective.name = 'classification'"),
        ({"data.buckets": (8, 16)}, "read only with objective.name = 'classification'"),
    ],
)
def test_fields_that_this_task_does_not_read_are_refused(config, overrides, message):
    with pytest.raises(ValueError, match=message):
        validate(override(config, overrides))


def test_a_text_too_short_to_divide(tmp_path, config):
    path = tmp_path / "short.txt"
    path.write_text("word1 word2")
    with pytest.raises(ValueError, match="has 2 words, too few to be divided"):
        run(override(config, {"data.source": str(path)}), tmp_path / "run", Console(quiet=True))


def test_texts_without_a_token_to_predict(tmp_path, config):
    for split in ("train", "validation", "test"):
        text = " " if split == "validation" else "word1 word2"
        (tmp_path / f"{split}.csv").write_text(f'text,n\n"{text}",1\n"{text}",{split}\n')
    config = override(config, {"data.source": str(tmp_path / "{split}.csv")})
    with pytest.raises(ValueError, match=r"validation.csv: no text of validation has a token to"):
        build(config)
