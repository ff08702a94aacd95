"""Losses of drawn completions: papers' equations in float64, and expectations by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.data.rewards import advantages
from ftjax.losses.policy import LOSS_TYPES, Drawn, clipped, divergence

LONGEST = 7


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    counts = np.arange(6) < np.array([6, 1, 3, 0, 5])[:, None]
    old = -random.exponential(size=(5, 6))
    return {
        "logps": old + random.normal(scale=0.4, size=old.shape),
        "old_logps": old,
        "counts": counts,
        "advantages": random.normal(size=5),
    }


def written_out(rows, low, high, kind):
    """One token at a time."""
    losses = np.zeros(rows["logps"].shape)
    for row, place in np.argwhere(rows["counts"]):
        ratio = np.exp(rows["logps"][row, place] - rows["old_logps"][row, place])
        gain = rows["advantages"][row]
        losses[row, place] = -min(ratio * gain, min(max(ratio, 1 - low), 1 + high) * gain)
    tokens = rows["counts"].sum(1)
    real = tokens > 0
    if kind == "grpo":
        return np.mean(losses.sum(1)[real] / tokens[real])
    if kind == "dapo":
        return losses.sum() / tokens.sum()
    return losses.sum() / (real.sum() * LONGEST)


def value(rows, kind, low=0.2, high=0.3):
    drawn = Drawn(**{name: jnp.asarray(array) for name, array in rows.items()})
    losses, _ = clipped(drawn, low, high)
    total, weight = LOSS_TYPES[kind](losses, drawn.counts, LONGEST)
    return total / weight


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_each_token_is_written_out(rows, kind):
    expected = written_out(rows, 0.2, 0.3, kind)
    assert float(value(rows, kind)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_gradients_are_differences(rows, kind):
    gradient = jax.grad(lambda logps: value(rows | {"logps": logps}, kind))(
        rows["logps"].astype(np.float32)
    )
    step = 1e-6
    for row, place in [(0, 0), (0, 4), (1, 0), (2, 2), (4, 1)]:
        ends = []
        for sign in (1, -1):
            logps = rows["logps"].copy()
            logps[row, place] += sign * step
            ends.append(written_out(rows | {"logps": logps}, 0.2, 0.3, kind))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float(gradient[row, place]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert not np.any(np.asarray(gradient)[~rows["counts"]])


def test_what_clipping_takes(rows):
    drawn = Drawn(**{name: jnp.asarray(array) for name, array in rows.items()})
    _, found = clipped(drawn, 0.2, 0.3)
    ratio, gain = np.exp(rows["logps"] - rows["old_logps"]), rows["advantages"][:, None]
    expected = rows["counts"] & (((ratio < 0.8) & (gain < 0)) | ((ratio > 1.3) & (gain > 0)))
    np.testing.assert_array_equal(np.asarray(found) > 0, expected)
    assert expected.any()


def test_garbage_where_nothing_counts_reaches_nothing(rows):
    poisoned = {
        name: np.where(rows["counts"], rows[name], np.nan) for name in ("logps", "old_logps")
    }

    def total(logps, old):
        return value(rows | {"logps": logps, "old_logps": old}, "dapo")

    found = jax.value_and_grad(total)(*poisoned.values())
    expected = jax.value_and_grad(total)(rows["logps"], rows["old_logps"])
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_divergence_is_that_of_the_distributions():
    """Value and gradient of what is drawn, on average over all tokens, and never below 0."""
    random = np.random.default_rng(1)
    scores, old, reference = (jnp.asarray(random.normal(size=9), jnp.float32) for _ in range(3))
    old, reference = jax.nn.log_softmax(old), jax.nn.log_softmax(reference)

    def estimate(scores):
        logps = jax.nn.log_softmax(scores)
        counts, none = jnp.ones((1, 9), bool), jnp.zeros(1)
        found = divergence(Drawn(logps[None], old[None], counts, none), reference[None])[0]
        return jnp.sum(jnp.exp(old) * found), found

    def expected(scores):
        logps = jax.nn.log_softmax(scores)
        return jnp.sum(jnp.exp(logps) * (logps - reference))

    (value, found), gradient = jax.value_and_grad(estimate, has_aux=True)(scores)
    assert (found >= 0).all()
    assert float(value) == pytest.approx(float(expected(scores)), rel=1e-5)
    np.testing.assert_allclose(gradient, jax.grad(expected)(scores), atol=1e-6)
    nothing = Drawn(*(jnp.asarray([[np.nan]]),) * 2, jnp.asarray([[False]]), jnp.zeros(1))
    assert float(divergence(nothing, jnp.asarray([[1.0]]))[0, 0]) == 0


@pytest.mark.parametrize("group", [2, 3, 4])
def test_a_bandit_of_two_tokens(group):
    """On average over all that can be drawn, the gradient is that of the expected reward.

    Of a prompt's own mean as baseline, (n - 1) / n of it (Kool et al. 2019, Buy 4 REINFORCE
    Samples).
    """
    worth = np.array([1.0, 0.25])

    def expected_reward(logit):
        return jnp.sum(jax.nn.softmax(jnp.stack([logit, 0.0])) * worth)

    def loss(logit, tokens):
        logps = jax.nn.log_softmax(jnp.stack([logit, 0.0]))[tokens][:, None]
        gains, _ = advantages(worth[np.asarray(tokens)][None], "none")
        drawn = Drawn(
            logps, jax.lax.stop_gradient(logps), jnp.ones((group, 1), bool), jnp.asarray(gains[0])
        )
        losses, _ = clipped(drawn, 0.2, 0.2)
        total, weight = LOSS_TYPES["dapo"](losses, drawn.counts, 1)
        return total / weight

    logit = jnp.float32(0.3)
    chances = np.asarray(jax.nn.softmax(jnp.stack([logit, 0.0])), np.float64)
    total = 0.0
    for tokens in itertools.product((0, 1), repeat=group):
        chance = np.prod(chances[list(tokens)])
        total += chance * float(jax.grad(loss)(logit, jnp.asarray(tokens)))
    expected = -(group - 1) / group * float(jax.grad(expected_reward)(logit))
    assert total == pytest.approx(expected, rel=1e-4)
