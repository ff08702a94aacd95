"""Tables that grow for tokens beyond them."""

import json

import numpy as np
import pytest
from rich.console import Console
from tiny import TINY

from ftjax.config import base_config, override
from ftjax.pretrained.export import export
from ftjax.pretrained.load import load_model
from ftjax.training.run import run
from ftjax.use.chat import load_writer_of_run


@pytest.mark.parametrize("network", ["backbone", "causal_lm"])
def test_new_rows_are_the_mean_and_the_rest_stays(tiny_llama, tmp_path, network):
    small, large = load_model(tiny_llama, network), load_model(tiny_llama, network, rows=70)
    inside = (small, large) if network == "backbone" else (small.backbone, large.backbone)
    old, new = (np.asarray(model.embed_tokens.embedding[...]) for model in inside)
    assert new.shape == (70, 16)
    np.testing.assert_array_equal(new[:64], old)
    np.testing.assert_allclose(new[64:], np.tile(old.mean(0), (6, 1)), rtol=1e-6)
    ids = np.arange(4, 20)[None]
    np.testing.assert_allclose(
        large(ids).last_hidden_state, small(ids).last_hidden_state, atol=1e-6
    )
    if network == "causal_lm":
        logits = np.asarray(large(ids).logits)
        np.testing.assert_allclose(logits[..., :64], small(ids).logits, atol=1e-5)
        export(large, network, tiny_llama, tmp_path / "out")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 70
        np.testing.assert_allclose(load_model(tmp_path / "out", network)(ids).logits, logits)


def test_a_run_over_a_token_beyond_the_table(tiny_checkpoint, tmp_path):
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    folder = tiny_checkpoint("llama", fields, "causal_lm")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        {
            "id": 64,
            "content": "<|user|>",
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("<|user|> word1 word2 word3" for _ in range(45)))
    config = override(
        base_config("causal_lm"),
        {name: value for name, value in TINY.items() if name != "data.buckets"}
        | {
            "model.reference": str(folder),
            "data.source": str(text),
            "data.max_length": 16,
            "retention.enabled": False,
            "training.epochs": 1,
        },
    )
    with pytest.raises(ValueError, match=r"<\|user\|>.*model\.grow_table = True"):
        run(config, tmp_path / "refused", Console(quiet=True))
    grown = override(config, {"model.grow_table": True})
    result = run(grown, tmp_path / "run", Console(quiet=True))
    assert np.isfinite(result.metrics["test/perplexity"])
    assert load_writer_of_run(tmp_path / "run").network.config.vocab_size == 65
