"""An encoder's pretraining continued on texts, from file to result, prediction and export."""

import json

import numpy as np
import pytest
from stopped import whole_and_continued
from tiny import quiet, write_subword_tokenizer

from ftjax.config import base_config, override
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.predict import Predictor

FIELDS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture
def config(tmp_path, tiny_checkpoint):
    """Texts in which the second word follows from the first."""
    folder = tiny_checkpoint("bert", FIELDS, "masked_lm")
    write_subword_tokenizer(folder)
    random = np.random.default_rng(0)
    numbers = random.integers(1, 9, (240, 3))
    texts = ["\n\n".join(" ".join(f"word{n} word{n}{n}" for n in row) for row in numbers)]
    (tmp_path / "text.txt").write_text(texts[0])
    return override(
        base_config("masked_lm"),
        {
            "name": "tiny",
            "model.reference": str(folder),
            "data.source": str(tmp_path / "text.txt"),
            "data.max_length": 32,
            "data.batch_size": 16,
            "evaluation.batch_size": 8,
            "evaluation.every": 6,
            "optimizer.learning_rate": 1e-2,
            "training.epochs": 4,
            "training.log_every": 1,
            "retention.source": str(tmp_path / "text.txt"),
        },
    )


def test_learns_predicts_and_says_how_well(tmp_path, config):
    config = override(config, {"training.epochs": 12, "objective.whole_word_mask": True})
    result = run(config, tmp_path / "run", quiet())
    metrics = result.metrics
    assert metrics["test/loss"] < 0.7 * metrics["test/pretrained/loss"]
    assert metrics["test/accuracy"] > metrics["test/pretrained/accuracy"]
    assert metrics["retention/change"] > 0
    objective = build(config).objective
    examples = objective.examples["test"]
    per_byte = examples.text_tokens / examples.text_bytes
    assert metrics["test/bits_per_byte"] == pytest.approx(
        metrics["test/loss"] * per_byte / np.log(2), rel=1e-6
    )
    predict = Predictor(tmp_path / "run")
    texts = [{"text": "word3 word[MASK]"}, {"text": "[MASK] 5 [MASK]"}]
    alone, both = predict(texts[:1]), predict(texts)
    assert [len(found["masks"]) for found in both] == [1, 2]
    assert alone[0]["masks"][0][0].keys() == {"token_str", "score"}
    for one, other in zip(alone[0]["masks"][0], both[0]["masks"][0], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    scores = [found["score"] for found in both[1]["masks"][0]]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    assert len(predict.objective.describe_prediction(both[1])) == 2
    with pytest.raises(ValueError, match="there is nothing to guess"):
        predict([{"text": "word1"}])


def test_stopped_and_started_again_sees_the_same_masks(tmp_path, config, monkeypatch):
    whole_and_continued(config, tmp_path, monkeypatch, batch=9, step=6)


def test_micro_batches_and_devices_make_the_same_step(tmp_path, config):
    """Rows with unequal numbers of tokens to guess."""
    losses = []
    for steps, parallel in ((1, "mesh"), (4, "mesh"), (2, "pmap")):
        variant = {"optimizer.accumulation_steps": steps, "training.parallel": parallel}
        settings = variant | {"training.max_steps": 3, "retention.enabled": False}
        folder = tmp_path / f"{parallel}{steps}"
        run(override(config, settings), folder, quiet())
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        found = [line for line in lines if "train/loss" in line]
        losses.append([(x["train/loss"], x["train/gradient_norm"]) for x in found])
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=2e-5)


@pytest.mark.parametrize("method", ["lora", "bitfit", "prefix"])
def test_methods(tmp_path, config, method):
    settings = {"tuning.method": method, "training.max_steps": 4, "retention.enabled": False}
    result = run(override(config, settings), tmp_path / "run", quiet())
    assert np.isfinite(result.metrics["test/loss"])
    assert result.metrics["test/loss"] != result.metrics["test/pretrained/loss"]


def test_penalties_and_replayed_text(tmp_path, config):
    """Those that compare with the base, those that need text of their own."""
    settings = {
        "penalties.kl_to_base": 0.1,
        "penalties.feature_distillation": 0.1,
        "penalties.replay": 0.5,
        "penalties.ewc": 0.1,
        "penalties.source": config.data.source,
        "training.max_steps": 3,
        "retention.enabled": False,
    }
    result = run(override(config, settings), tmp_path / "run", quiet())
    assert np.isfinite(result.metrics["test/loss"])
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    trained = [line for line in lines if "train/replay" in line]
    assert trained[0]["train/kl_to_base"] == pytest.approx(0.0, abs=1e-6)
    # The same texts, the same loss but for other masks.
    assert trained[0]["train/replay"] == pytest.approx(0.5 * 3.8, rel=0.4)


def test_what_cannot_be_done(tmp_path, config, tiny_checkpoint):
    with pytest.raises(ValueError, match="max_length = 64, and the network has positions for 32"):
        build(override(config, {"data.max_length": 64}))
    with pytest.raises(ValueError, match=r"prompt.*use 'prefix'"):
        build(override(config, {"tuning.method": "prompt"}))
    folder = tiny_checkpoint("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2}, "causal_lm")
    write_subword_tokenizer(folder)
    with pytest.raises(ValueError, match="masked_lm"):
        build(override(config, {"model.reference": str(folder)}))
    with pytest.raises(ValueError, match="read only with"):
        override(config, {"objective.label_smoothing": 0.1})


def test_only_logits_of_masked_tokens_are_computed(config):
    parts = build(config)
    batch = parts.objective.examples["test"].batch(np.arange(2), rows=2, length=32)
    network = parts.rebuild(parts.trainable, parts.frozen)
    assert network(batch).hidden.shape == (2, 5, 16)
