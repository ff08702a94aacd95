"""The order in which parameters begin to move, and their learning rates."""

import pytest

from ftjax.config import base_config
from ftjax.tuning.learning_rates import learning_rate_factors
from ftjax.tuning.stages import make_stages, stage_of

PATHS = [
    "backbone.embeddings.word_embeddings.embedding",
    "backbone.embeddings.LayerNorm.scale",
    "backbone.encoder.layer.0.output.dense.kernel",
    "backbone.encoder.layer.1.output.dense.kernel",
    "backbone.encoder.layer.10.output.dense.kernel",
    "backbone.norm.scale",
    "classifier.kernel",
]


def test_all_at_once_by_default():
    (stage,) = make_stages(PATHS, base_config().tuning)
    assert list(stage.joining) == PATHS and stage.moving == set(PATHS)


def test_blocks_join_from_the_top_and_embeddings_last():
    settings = base_config().tuning
    settings.unfreeze_epochs = 2
    stages = make_stages(PATHS, settings)
    assert [set(stage.joining) for stage in stages] == [
        {"classifier.kernel", "backbone.norm.scale"},
        {"backbone.encoder.layer.10.output.dense.kernel"},
        {"backbone.encoder.layer.1.output.dense.kernel"},
        {"backbone.encoder.layer.0.output.dense.kernel"},
        set(PATHS[:2]),
    ]
    assert stages[-1].moving == set(PATHS)
    assert [stage_of(stages, epoch) for epoch in (0, 1, 2, 3, 4, 99)] == [0, 0, 1, 1, 2, 4]


def test_discriminative_rates_fall_by_the_decay_from_block_to_block():
    """Howard & Ruder 2018, section 3.1: each layer's rate is that of the one above over 2.6."""
    config = base_config()
    config.optimizer.layer_decay, config.optimizer.head_learning_rate_factor = 1 / 2.6, 3.0
    found = learning_rate_factors(config.optimizer, config.tuning, PATHS)
    below = 2.6**-12
    expected = [below, below, 2.6**-11, 2.6**-10, 2.6**-1, 1.0, 3.0]
    for path, factor in zip(PATHS, expected, strict=True):
        assert found[path] == pytest.approx(factor), path


def test_an_encoder_decoder_decays_in_each_stack():
    config = base_config()
    config.optimizer.layer_decay = 0.5
    paths = [f"backbone.{stack}.block.{n}.wi.kernel" for stack in "ab" for n in range(2)]
    found = learning_rate_factors(config.optimizer, config.tuning, paths)
    assert list(found.values()) == [0.25, 0.5, 0.25, 0.5]


def test_lora_plus_speeds_up_b_alone():
    config = base_config(method="lora_plus")
    paths = ["backbone.layer.0.query.lora_a", "backbone.layer.0.query.lora_b"]
    found = learning_rate_factors(config.optimizer, config.tuning, paths)
    assert list(found.values()) == [1.0, 16.0]
