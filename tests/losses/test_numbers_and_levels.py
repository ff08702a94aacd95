"""Squared errors and ordered levels against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, rel_entr

from ftjax.losses import levels, numbers
from ftjax.losses.divergence import divergence

WEIGHTS = np.array([1, 0, 1, 1], np.float32)


def test_squared_errors():
    outputs, labels = np.array([[1.0], [np.nan], [0.5], [-2.0]]), np.array([0.0, 7.0, 0.5, 1.0])
    total, weight, metrics = numbers.loss(
        jnp.asarray(outputs), {"labels": labels, "weights": WEIGHTS}
    )
    assert (float(total), float(weight)) == (10.0, 3.0)
    assert float(metrics["absolute_error"][0]) == 4.0


def test_huber_is_squared_near_and_straight_far():
    outputs = jnp.array([[0.5], [9.0], [1.0], [-3.0]])
    batch = {"labels": np.zeros(4), "weights": WEIGHTS}
    total, _, _ = numbers.loss(outputs, batch, huber_delta=1.0)
    assert float(total) == pytest.approx(0.25 + 1.0 + (2 * 3.0 - 1.0))
    gradient = jax.grad(lambda x: numbers.loss(x, batch, huber_delta=1.0)[0])(outputs)
    np.testing.assert_allclose(gradient[:, 0], [1.0, 0.0, 2.0, -2.0])


@pytest.mark.parametrize("delta", [None, 1.0])
def test_a_number_that_does_not_count_has_no_part_in_the_gradient(delta):
    batch = {"labels": np.array([0.0, np.nan, 0.5, 1.0]), "weights": WEIGHTS}
    outputs = jnp.array([[1.0], [2.0], [0.5], [-2.0]])
    gradient = jax.grad(lambda x: numbers.loss(x, batch, huber_delta=delta)[0])(outputs)
    expected = [2.0, 0.0, 0.0, -6.0 if delta is None else -2.0]
    np.testing.assert_allclose(gradient[:, 0], expected)


def test_divergence_of_numbers():
    found = numbers.divergence(jnp.array([[1.0], [5.0]]), jnp.array([[3.0], [5.0]]), jnp.ones(2))
    assert float(found) == 2.0


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * 2


def test_levels_chances_are_products_of_answers(logits):
    chances = np.exp(levels.log_probabilities(jnp.asarray(logits)))
    above = expit(logits.astype(float))
    for row, answers in zip(chances, above, strict=True):
        expected = [
            np.prod(answers[:level]) * (1 - answers[level] if level < 3 else 1)
            for level in range(4)
        ]
        np.testing.assert_allclose(row, expected, rtol=1e-5)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-6)


def test_loss_of_levels_is_corns_over_texts(logits):
    """Its questions are asked only of texts that reach them; binary cross-entropy of each."""
    labels = np.array([0, 2, 3, 1])
    total, weight, metrics = levels.loss(
        jnp.asarray(logits), {"labels": labels, "weights": WEIGHTS}
    )
    above, expected = expit(logits.astype(float)), 0.0
    for row, level in itertools.product(np.flatnonzero(WEIGHTS), range(3)):
        if labels[row] >= level:
            share = above[row, level]
            expected -= np.log(share if labels[row] > level else 1 - share)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(weight) == 3
    chances = np.exp(levels.log_probabilities(jnp.asarray(logits)))
    median = (chances.cumsum(1) < 0.5).sum(1)
    np.testing.assert_array_equal(levels.median_level(jnp.asarray(logits)), median)
    assert float(metrics["accuracy"][0]) == ((median == labels) * WEIGHTS).sum()


def test_divergence_of_levels(logits):
    first = levels.log_probabilities(jnp.asarray(logits))
    second = levels.log_probabilities(jnp.asarray(logits[::-1]))
    expected = (rel_entr(np.exp(first), np.exp(second)).sum(1) * WEIGHTS).sum()
    assert float(divergence(first, second, WEIGHTS)) == pytest.approx(expected, rel=1e-4)


def test_certain_answers_have_finite_gradients():
    batch = {"labels": np.array([0, 3]), "weights": np.ones(2, np.float32)}
    far = jnp.array([[90.0, -90.0, 90.0], [-90.0, 90.0, -90.0]])
    assert np.isfinite(jax.grad(lambda x: levels.loss(x, batch)[0])(far)).all()
