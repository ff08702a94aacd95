"""Phi-3 against transformers, one tiny random checkpoint per switch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from decoders import (  # noqa: E402
    TINY,
    assert_same_decoder,
    batch,
    random_model,
    rewrite_config,
)

from ftjax.pretrained.load import load_model  # noqa: E402

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 5.0, 9.0],
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}
PARTIAL = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
SWITCHES = {
    "plain": {},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "window": {"sliding_window": 5},
    "partial rotary": {"rope_parameters": PARTIAL},
    "odd heads, partial rotary": {"hidden_size": 36, "rope_parameters": PARTIAL},
    "odd part of a head": {"hidden_size": 40, "rope_parameters": PARTIAL},
    "longrope, short": {
        "rope_parameters": LONGROPE,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 32,
    },
    "longrope, as long as trained": {
        "rope_parameters": LONGROPE,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 17,
    },
    "longrope, long": {
        "rope_parameters": LONGROPE,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
    },
    "longrope, not extended": {
        "rope_parameters": LONGROPE,
        "max_position_embeddings": 16,
        "original_max_position_embeddings": 16,
    },
    "longrope, partial rotary": {
        "hidden_size": 64,
        "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5},
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 8,
    },
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_random_checkpoint(tmp_path, switch):
    config = transformers.Phi3Config(**(TINY | SWITCHES[switch]))
    assert_same_decoder(tmp_path, transformers.Phi3ForCausalLM, config)


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_older_spelling_of_rope_parameters(tmp_path, name):
    """As published with Phi-3 (128k) and Phi-4-mini."""
    sizes = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    config = transformers.Phi3Config(**(TINY | sizes), rope_parameters=dict(LONGROPE))
    model = random_model(transformers.Phi3ForCausalLM, config).eval()
    model.save_pretrained(tmp_path)

    def older(fields):
        del fields["rope_parameters"]
        factors = {key: LONGROPE[key] for key in ("short_factor", "long_factor")}
        fields.update(
            rope_theta=10000.0,
            rope_scaling=factors | {"type": name},
            partial_rotary_factor=1.0,
            attention_bias=False,
            mlp_bias=False,
            lm_head_bias=False,
            full_attn_mod=1,
            interpolate_factor=1,
        )

    rewrite_config(tmp_path, older)
    inputs = batch()
    ours = load_model(tmp_path, "causal_lm")(**inputs).logits
    with torch.no_grad():
        theirs = model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    difference = np.abs(np.asarray(ours) - theirs.numpy())[inputs["attention_mask"] > 0]
    assert difference.max() <= 1e-5


def test_classifier(tmp_path):
    config = transformers.Phi3Config(**TINY, num_labels=3)
    inputs = batch()
    assert_same_network(
        tmp_path,
        random_model(transformers.Phi3ForSequenceClassification, config),
        "sequence_classification",
        inputs,
        outputs=("logits",),
        valid=inputs["attention_mask"],
    )
