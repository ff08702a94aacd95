"""Gemma 1, 2 and 3 against transformers, one tiny random checkpoint per switch."""

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

from ftjax.models.layers import Compute  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

TINY = TINY | {"head_dim": 12}
GEMMA = {
    "plain": {},
    "one key head": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "bias": {"attention_bias": True},
    "gelu, which means its approximation": {"hidden_act": "gelu"},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}
WINDOW = {"sliding_window": 5, "query_pre_attn_scalar": 20, "num_hidden_layers": 3}
GEMMA2 = {
    "plain": {},
    "one key head": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "bias": {"attention_bias": True},
    "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "tight caps": {"attn_logit_softcapping": 0.3, "final_logit_softcapping": 0.7},
    "layer types": {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    "another activation": {"hidden_activation": "silu"},
}
GEMMA3 = {
    "plain": {},
    "one key head": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "bias": {"attention_bias": True},
    "final cap": {"final_logit_softcapping": 0.7},
    "every second layer is full": {"sliding_window_pattern": 2},
    "layer types": {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    "only full attention": {"layer_types": ["full_attention"] * 3},
    "bidirectional, even window": {
        "use_bidirectional_attention": True,
        "sliding_window_pattern": 2,
        "sliding_window": 6,
    },
    "bidirectional, odd window": {
        "use_bidirectional_attention": True,
        "sliding_window_pattern": 2,
        "sliding_window": 5,
    },
    "two bases, the global one scaled": {
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    },
    "dynamic, beyond": {
        "sliding_window_pattern": 2,
        "max_position_embeddings": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    },
}


@pytest.mark.parametrize("switch", GEMMA)
def test_gemma(tmp_path, switch):
    config = transformers.GemmaConfig(**(TINY | GEMMA[switch]))
    assert_same_decoder(tmp_path, transformers.GemmaForCausalLM, config)


@pytest.mark.parametrize("switch", GEMMA2)
def test_gemma2(tmp_path, switch):
    config = transformers.Gemma2Config(**(TINY | WINDOW | GEMMA2[switch]))
    assert_same_decoder(tmp_path, transformers.Gemma2ForCausalLM, config, inputs=batch(left=True))


@pytest.mark.parametrize("switch", GEMMA3)
def test_gemma3(tmp_path, switch):
    config = transformers.Gemma3TextConfig(**(TINY | WINDOW | GEMMA3[switch]))
    assert_same_decoder(tmp_path, transformers.Gemma3ForCausalLM, config)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 8.0}])
def test_gemma3_older_spelling(tmp_path, scaling):
    """As transformers 4 wrote it."""
    config = transformers.Gemma3TextConfig(
        **(TINY | WINDOW),
        sliding_window_pattern=2,
        rope_parameters={
            "full_attention": dict(scaling or {"rope_type": "default"}, rope_theta=5000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    )
    model = random_model(transformers.Gemma3ForCausalLM, config).eval()
    model.save_pretrained(tmp_path)

    def older(fields):
        for name in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
            del fields[name]
        fields.update(
            rope_theta=5000.0,
            rope_local_base_freq=300.0,
            rope_scaling=scaling,
            sliding_window_pattern=2,
            cache_implementation="hybrid",
        )

    rewrite_config(tmp_path, older)
    inputs = batch()
    ours = load_model(tmp_path, "causal_lm")(**inputs).logits
    with torch.no_grad():
        theirs = model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    difference = np.abs(np.asarray(ours) - theirs.numpy())[inputs["attention_mask"] > 0]
    assert difference.max() <= 1e-5


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    """Gemma's blocks alternate: only neighbours of one kind can be scanned together."""
    layers = {"num_hidden_layers": 5, "sliding_window_pattern": 3}
    config = transformers.Gemma3TextConfig(**(TINY | WINDOW | layers))
    assert_same_decoder(tmp_path, transformers.Gemma3ForCausalLM, config, compute=compute)


@pytest.mark.parametrize("name", ["Gemma", "Gemma2", "Gemma3Text"])
def test_classifier(tmp_path, name):
    config = getattr(transformers, f"{name}Config")(**TINY, num_labels=3)
    network = getattr(transformers, f"{name}ForSequenceClassification", None)
    if network is None:
        from transformers.models.gemma3.modeling_gemma3 import (
            Gemma3TextForSequenceClassification as network,
        )
    inputs = batch()
    assert_same_network(
        tmp_path,
        random_model(network, config),
        "sequence_classification",
        inputs,
        outputs=("logits",),
        valid=inputs["attention_mask"],
    )
