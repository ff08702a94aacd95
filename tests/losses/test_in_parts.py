"""A batch that is embedded in parts has the loss and the gradient of the whole (GradCache)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import write_splits

from ftjax.config import base_config, override, validate
from ftjax.losses.forward import forward
from ftjax.training.build import build

ROWS, PART, LENGTH = 32, 4, 24
NAMES = ("anchor", "positive", "negative")


@pytest.fixture
def config_of(tiny_bert, tmp_path):
    def record(index):
        return {name: f"word{index % 50} word{(by + index) % 7}" for by, name in enumerate(NAMES)}

    source = write_splits(tmp_path, record, train=40, validation=20, test=21)

    def make(**fields):
        settings = {
            "name": "tiny",
            "model.reference": str(tiny_bert),
            "data.source": str(source),
            "data.max_length": 8,
            "data.batch_size": ROWS,
            "data.negative_fields": ("negative",),
            "retention.enabled": False,
        }
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("embedding"), settings | fields)

    return make


def value_and_gradient(parts, rows_at_once, key=None):
    """A jitted function of parameters and a batch."""

    def loss(trainable, batch):
        def network(parameters, key):
            return parts.rebuild(parameters, parts.frozen)

        passed = forward(network, trainable, parts.frozen, batch, key, rows_at_once)
        total, weight, _ = parts.objective.loss(passed)
        return total / weight

    return jax.jit(jax.value_and_grad(loss))


def built(config, rows=ROWS - 3):
    """Parts, and a batch of which some rows only fill up."""
    parts = build(config)
    examples = parts.objective.examples["train"]
    return parts, examples.batch(np.arange(rows), rows=ROWS, length=LENGTH)


def assert_close(found, expected):
    """Within 1e-6 of the largest number of all."""
    largest = max(float(jnp.abs(value).max()) for value in expected.values())
    assert largest > 1e-2
    for path, value in expected.items():
        np.testing.assert_allclose(
            found[path], value, rtol=0, atol=1e-6 * max(1.0, largest), err_msg=path
        )


@pytest.mark.parametrize("loss", ["multiple_negatives", "triplet"])
def test_parts_have_the_gradient_of_the_whole(config_of, loss):
    parts, batch = built(config_of(objective__loss=loss, model__dropout=0.0))
    batch["replay_weights"] = np.ones(3, np.float32)
    whole, gradient = value_and_gradient(parts, None)(parts.trainable, batch)
    for size in (1, PART, ROWS):
        found, its_gradient = value_and_gradient(parts, size)(parts.trainable, batch)
        assert float(found) == pytest.approx(float(whole), rel=1e-6)
        assert_close(its_gradient, gradient)


def test_both_passes_of_a_part_drop_the_same(config_of):
    """As the parts, each with its key, one behind the other and all held."""
    parts, batch = built(config_of(model__dropout=0.3))
    key, count = jax.random.key(5), ROWS // PART

    def one_behind_the_other(trainable, batch):
        network = parts.rebuild(trainable, parts.frozen)
        found = jnp.zeros((ROWS, len(NAMES), 16))
        for index, part_key in enumerate(jax.random.split(key, count)):
            part = {name: array[index::count] for name, array in batch.items()}
            found = found.at[index::count].set(network(part, key=part_key))
        passed = forward(lambda *_: lambda *_, **__: found, trainable, {}, batch, None)
        total, weight, _ = parts.objective.loss(passed)
        return total / weight

    expected, gradient = jax.value_and_grad(one_behind_the_other)(parts.trainable, batch)
    found, its_gradient = value_and_gradient(parts, PART, key)(parts.trainable, batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert_close(its_gradient, gradient)
    other, _ = value_and_gradient(parts, PART, jax.random.key(6))(parts.trainable, batch)
    assert float(other) != float(found)


def test_parts_need_the_memory_of_a_part(config_of):
    """As XLA plans it, of everything but parameters and gradient."""
    parts, batch = built(config_of())

    def planned(rows_at_once):
        lowered = value_and_gradient(parts, rows_at_once).lower(parts.trainable, batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert planned(PART) < planned(None) / 3


def test_what_has_no_equal_parts_is_refused(config_of):
    with pytest.raises(ValueError, match=r"mini_batch_size = 5 does not divide .*batch_size = 32"):
        validate(config_of(objective__mini_batch_size=5))
    with pytest.raises(ValueError, match=r"penalties\.r_drop holds .* the whole batch"):
        validate(config_of(objective__mini_batch_size=4, penalties__r_drop=1.0))
