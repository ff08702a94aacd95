"""GPT-2 against transformers, one tiny random checkpoint per switch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from decoders import assert_same_decoder, batch, random_model  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402

TINY = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 24,
    "initializer_range": 0.12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SWITCHES = {
    "plain": {},
    "one head": {"n_head": 1},
    "odd heads": {"n_embd": 36},
    "untied": {"tie_word_embeddings": False},
    "inner size": {"n_inner": 40},
    "relu": {"activation_function": "relu"},
    "scores not scaled": {"scale_attn_weights": False},
    "scores scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "neither": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "reordered": {"reorder_and_upcast_attn": True, "attn_implementation": "eager"},
    "large epsilon": {"layer_norm_epsilon": 1e-2},
    "as many tokens as positions": {"n_positions": 17},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_random_checkpoint(tmp_path, switch):
    config = transformers.GPT2Config(**(TINY | SWITCHES[switch]))
    assert_same_decoder(tmp_path, transformers.GPT2LMHeadModel, config, inputs=batch(left=True))


def test_the_bare_network(tmp_path):
    """A checkpoint without the prefix, as GPT-2's own is."""
    inputs = batch()
    assert_same_network(
        tmp_path,
        random_model(transformers.GPT2Model, transformers.GPT2Config(**TINY)),
        "backbone",
        inputs,
        valid=inputs["attention_mask"],
    )


def test_token_types_and_positions(tmp_path):
    random = np.random.default_rng(2)
    inputs = batch() | {
        "token_type_ids": random.integers(0, 99, (3, 17)).astype(np.int32),
        "position_ids": random.integers(0, 24, (3, 17)).astype(np.int32),
    }
    config = transformers.GPT2Config(**TINY)
    assert_same_decoder(tmp_path, transformers.GPT2LMHeadModel, config, inputs=inputs)


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    config = transformers.GPT2Config(**TINY)
    assert_same_decoder(tmp_path, transformers.GPT2LMHeadModel, config, compute=compute)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_classifier(tmp_path, left):
    config = transformers.GPT2Config(**TINY, num_labels=3)
    inputs = batch(left=left)
    assert_same_network(
        tmp_path,
        random_model(transformers.GPT2ForSequenceClassification, config),
        "sequence_classification",
        inputs,
        outputs=("logits",),
        valid=inputs["attention_mask"],
    )
