"""Loss and search of spans: what does not count changes no bit, and neither does its width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.losses import spans
from ftjax.models.token_tagger import LOWEST, SpanReader

ROWS, LENGTH = 5, 12


def some(length=LENGTH, seed=0):
    """Logits with padding as `SpanReader` gives them, and a batch whose last row only fills up."""
    random = np.random.default_rng(seed)
    sizes = np.asarray([12, 7, 5, 9, 1])
    logits = np.full((ROWS, length, 2), LOWEST, np.float32)
    logits[:, :LENGTH] = random.normal(size=(ROWS, LENGTH, 2))
    logits[np.arange(length) >= sizes[:, None]] = LOWEST
    first = np.asarray([4, 2, 0, 6, 0])
    batch = {
        "start_positions": first,
        "end_positions": np.asarray([6, 2, 0, 8, 0]),
        "null_positions": np.zeros(ROWS, int),
        "context_start": np.asarray([3, 2, 2, 4, 0]),
        "context_end": np.asarray([10, 5, 3, 8, 0]),
        "weights": np.asarray([1, 1, 1, 1, 0], np.float32),
    }
    return logits, batch


def loss(logits, batch):
    total, weight, metrics = spans.loss(jnp.asarray(logits), batch)
    return total / weight, metrics["accuracy"][0]


def test_the_loss_is_the_mean_of_both_positions():
    logits, batch = some()
    expected = []
    for row in range(ROWS - 1):
        for side, name in enumerate(("start_positions", "end_positions")):
            real = logits[row, :, side].astype(np.float64)
            real = real[real > LOWEST]
            expected.append(np.log(np.exp(real).sum()) - real[batch[name][row]])
    assert float(loss(logits, batch)[0]) == pytest.approx(np.mean(expected), rel=1e-6)


def test_both_positions_must_be_right():
    logits, batch = some()
    logits[0, 4, 0] = logits[0, 6, 1] = logits[1, 2, 0] = 9.0
    logits[1, 3, 1] = logits[2, 1, 0] = logits[3, 1, 0] = 9.0
    assert float(loss(logits, batch)[1]) == 1


def test_rows_that_only_fill_up_may_hold_anything():
    logits, batch = some()
    other, garbage = logits.copy(), {name: value.copy() for name, value in batch.items()}
    other[-1] = np.nan
    garbage["start_positions"][-1], garbage["end_positions"][-1] = -7, 10**6
    found = [
        jax.value_and_grad(loss, has_aux=True)(jnp.asarray(one), both)
        for one, both in ((logits, batch), (other, garbage))
    ]
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_wider_padding_changes_nothing():
    (narrow, batch), (wide, _) = some(), some(40)
    assert float(loss(wide, batch)[0]) == pytest.approx(float(loss(narrow, batch)[0]), abs=1e-6)
    search = {"n_best": 15, "most": 4}
    found = [spans.best_spans(jnp.asarray(one), batch, **search) for one in (narrow, wide)]
    np.testing.assert_array_equal(*found)
    apart = [
        spans.divergence(jnp.asarray(one), jnp.asarray(one[::-1].copy()), batch["weights"])
        for one in (narrow[[0, 0, 0, 0, 0]], wide[[0, 0, 0, 0, 0]])
    ]
    np.testing.assert_allclose(*apart, atol=1e-6)


def test_what_the_network_says_of_padding_reaches_nothing():
    """Not even where it is no number."""
    _, batch = some()
    mask = np.asarray(np.arange(LENGTH) < np.asarray([12, 7, 5, 9, 1])[:, None], np.int32)

    class Reader(SpanReader):
        def __init__(self, logits):
            super().__init__(None)
            self.logits = logits

        def _encode(self, batch, key):
            return type("Output", (), {"last_hidden_state": self.logits})

    class Head:
        def classify(self, hidden, key):
            return hidden

    def value(logits):
        reader = Reader(logits)
        reader.backbone = Head()
        return loss(reader(batch | {"attention_mask": mask}), batch)

    logits = np.random.default_rng(0).normal(size=(ROWS, LENGTH, 2)).astype(np.float32)
    garbage = np.where(mask[..., None] > 0, logits, np.nan)
    found = [jax.value_and_grad(value, has_aux=True)(jnp.asarray(one)) for one in (logits, garbage)]
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
