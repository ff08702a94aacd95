"""Qwen 2 and 3 against transformers, one tiny random checkpoint per switch."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from decoders import TINY, assert_same_decoder, batch, random_model  # noqa: E402

WINDOW = {"use_sliding_window": True, "sliding_window": 5}
SWITCHES = {
    "plain": {},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "window not used": {"sliding_window": 5, "max_window_layers": 0},
    "window in all layers": WINDOW | {"max_window_layers": 0},
    "window in the last layer": WINDOW | {"max_window_layers": 1},
    "window in no layer": WINDOW | {"max_window_layers": 2},
    "layer types": WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    "window longer than the text": WINDOW | {"sliding_window": 40, "max_window_layers": 0},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 1e6,
        }
    },
    "dynamic, beyond": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 8,
    },
}
QWEN3_SWITCHES = SWITCHES | {
    "bias": {"attention_bias": True},
    "hidden size no multiple of heads": {"hidden_size": 30},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_qwen2(tmp_path, switch):
    config = transformers.Qwen2Config(**(TINY | SWITCHES[switch]))
    assert_same_decoder(tmp_path, transformers.Qwen2ForCausalLM, config, inputs=batch(left=True))


def test_qwen2_with_heads_of_another_size(tmp_path):
    config = transformers.Qwen2Config(**TINY, head_dim=12)
    assert_same_decoder(tmp_path, transformers.Qwen2ForCausalLM, config)


@pytest.mark.parametrize("switch", QWEN3_SWITCHES)
def test_qwen3(tmp_path, switch):
    config = transformers.Qwen3Config(**(TINY | {"head_dim": 12} | QWEN3_SWITCHES[switch]))
    assert_same_decoder(tmp_path, transformers.Qwen3ForCausalLM, config)


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3"])
def test_classifier(tmp_path, name):
    config = getattr(transformers, f"{name}Config")(**TINY, num_labels=3)
    network = getattr(transformers, f"{name}ForSequenceClassification")
    inputs = batch()
    assert_same_network(
        tmp_path,
        random_model(network, config),
        "sequence_classification",
        inputs,
        outputs=("logits",),
        valid=inputs["attention_mask"],
    )
