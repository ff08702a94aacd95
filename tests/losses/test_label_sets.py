"""Yes and no to each label, against scikit-learn, optax and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss

from ftjax.losses.label_sets import divergence, loss, pos_weight


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    logits = random.normal(size=(5, 3)).astype(np.float32) * 3
    labels = random.integers(0, 2, (5, 3))
    weights = np.array([1, 1, 0, 1, 1], np.float32)
    return logits, {"labels": labels, "weights": weights}


def test_it_is_the_mean_log_loss(case):
    logits, batch = case
    total, weight, metrics = loss(jnp.asarray(logits), batch)
    real = batch["weights"] > 0
    expected = log_loss(batch["labels"][real].ravel(), expit(logits[real].astype(float)).ravel())
    assert float(total / weight) == pytest.approx(expected, rel=1e-6)
    right = ((logits > 0) == batch["labels"])[real].mean()
    assert float(metrics["accuracy"][0] / metrics["accuracy"][1]) == pytest.approx(right)


def test_focal_loss_is_optaxs(case):
    logits, batch = case
    total, _, _ = loss(jnp.asarray(logits), batch, focal_gamma=2.0)
    expected = optax.sigmoid_focal_loss(jnp.asarray(logits), batch["labels"], gamma=2.0)
    expected = (expected.mean(-1) * batch["weights"]).sum()
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients_stay_finite_where_all_is_clear(gamma):
    batch = {"labels": np.array([[1, 0]]), "weights": np.ones(1, np.float32)}
    for size in (50.0, 200.0, -200.0):
        logits = jnp.array([[size, -size]])
        gradient = jax.grad(lambda x: loss(x, batch, focal_gamma=gamma)[0])(logits)
        assert np.isfinite(gradient).all()


def test_weights_of_labels(case):
    logits, batch = case
    weights = (2.0, 1.0, 0.5)
    total, weight, _ = loss(jnp.asarray(logits), batch, pos_weight=weights)
    chances, labels = expit(logits.astype(float)), batch["labels"]
    each = -(np.array(weights) * labels * np.log(chances) + (1 - labels) * np.log(1 - chances))
    assert float(total) == pytest.approx((each.mean(1) * batch["weights"]).sum(), rel=1e-5)
    assert float(weight) == 4


def test_weights_from_counts():
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 1]])
    assert pos_weight(labels, "ab", "none") is None
    assert pos_weight(labels, "ab", "balanced") == (3.0, 0.25)
    assert pos_weight(labels, "ab", "square_root") == pytest.approx((3**0.5, 0.5))
    assert pos_weight(labels, "ab", "b=2.5") == (1.0, 2.5)
    for wrong in ("c=1", "a=0", "a=-1", "a"):
        with pytest.raises(ValueError, match=r"config.objective.pos_weight = .* number above 0"):
            pos_weight(labels, "ab", wrong)


def test_rows_that_do_not_count_may_hold_anything(case):
    logits, batch = case
    garbage = {**batch, "labels": np.where(batch["weights"][:, None] > 0, batch["labels"], 10**6)}
    spoiled = np.where(batch["weights"][:, None] > 0, logits, np.nan)
    function = jax.value_and_grad(lambda x, batch: loss(x, batch)[0])
    value, gradient = function(jnp.asarray(logits), batch)
    for given in (logits, spoiled):
        found, found_gradient = function(jnp.asarray(given), garbage)
        assert float(found) == float(value)
        real = batch["weights"] > 0
        np.testing.assert_array_equal(found_gradient[real], gradient[real])


def test_divergence_is_that_of_coins():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 4, 3))
    weights = np.array([1.0, 0.0, 2.0, 1.0])
    p, q = expit(first), expit(second)
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = divergence(jnp.asarray(first), jnp.asarray(second), jnp.asarray(weights))
    assert float(found) == pytest.approx((each.sum(1) * weights).sum(), rel=1e-5)
    assert float(divergence(jnp.asarray(first), jnp.asarray(first), weights)) == 0
