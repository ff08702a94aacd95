"""Sorting texts with decoders and encoder-decoders: whole runs, and what is refused."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from ftjax.config import override
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.predict import Predictor

FIELDS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 20,
        "decoder_ffn_dim": 20,
        "max_position_embeddings": 32,
    },
}


@pytest.fixture
def config_of(tiny_config, tiny_checkpoint):
    """(family, pooling) -> config."""

    def make(family, pooling):
        network = "causal_lm" if family == "gpt2" else "seq2seq_lm"
        return override(
            tiny_config,
            {
                "model.reference": str(tiny_checkpoint(family, FIELDS[family], network)),
                "model.pooling": pooling,
                "retention.enabled": False,
                "evaluation.baselines": False,
                "training.epochs": 6,
                "training.log_every": 1,
            },
        )

    return make


@pytest.mark.parametrize(("family", "pooling"), [("gpt2", "last"), ("t5", "mean")])
def test_learns_and_predicts(tmp_path, config_of, family, pooling):
    run(config_of(family, pooling), tmp_path / "run", Console(file=io.StringIO()))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0], losses
    predict = Predictor(tmp_path / "run")
    assert predict.objective.classes == ["a", "b", "c"]
    alone, longer = "word1 word2 word3", "word21 " * 12
    # Padding to the longer text changes nothing.
    both = predict.outputs([{"text": longer}, {"text": alone}])
    np.testing.assert_allclose(both[1], predict.outputs([{"text": alone}])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "pooling", "message"),
    [
        ("gpt2", "first", "first token of a decoder sees no other"),
        ("gpt2", "pooler", "no network 'pooled'.*set config.model.pooling to 'mean'"),
        ("bart", "mean", "no network 'encoder'.*choose a text encoder"),
    ],
)
def test_what_cannot_sort_texts(config_of, family, pooling, message):
    with pytest.raises(ValueError, match=message):
        build(config_of(family, pooling))
