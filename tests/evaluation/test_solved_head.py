"""A head that is solved is scikit-learn's logistic regression, and where the gradient is zero."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from ftjax.evaluation.solved_head import solve_head


def some(classes, count=60, width=12):
    random = np.random.default_rng(classes)
    labels = np.arange(count) % classes
    features = random.normal(size=(count, width)) + random.normal(size=(classes, width))[labels]
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_is_the_minimum(classes):
    """The gradient of the summed loss and half the squared weights, in float64."""
    features, labels = some(classes)
    kernel, bias = solve_head(features, labels)
    assert kernel.shape == (12, classes) and kernel.dtype == bias.dtype == np.float32
    x, target = features.astype(np.float64), np.eye(classes)[labels]
    if classes == 2:
        # scikit-learn holds the weights of the one logit that it has near zero.
        weights, constant = kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]
        apart = expit(x @ weights + constant) - labels
        gradients = x.T @ apart + weights, apart.sum()
    else:
        apart = softmax(x @ kernel + bias, axis=-1) - target
        gradients = x.T @ apart + kernel, apart.sum(0)
    # What float32 leaves of it.
    assert all(np.abs(gradient).max() < 2e-5 for gradient in gradients)


@pytest.mark.parametrize("classes", [2, 5])
def test_scikit_learn_finds_the_same(classes):
    """By another method, L-BFGS."""
    features, labels = some(classes)
    kernel, bias = solve_head(features, labels)
    reference = LogisticRegression(tol=1e-13, max_iter=100_000).fit(
        features.astype(np.float64), labels
    )
    expected = reference.predict_proba(features)
    np.testing.assert_allclose(softmax(features @ kernel + bias, axis=-1), expected, atol=1e-6)
    found = kernel - kernel.mean(1, keepdims=True)
    weights = reference.coef_.T
    if classes == 2:
        weights = np.hstack([-weights / 2, weights / 2])
    np.testing.assert_allclose(found, weights - weights.mean(1, keepdims=True), atol=1e-6)


def test_it_is_the_same_each_time():
    first, second = (solve_head(*some(4)) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
