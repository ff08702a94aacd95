import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ftjax.objectives.causal_lm import loss, row_sums


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 5, 7)).astype(np.float32)
    labels = random.integers(0, 7, (3, 5))
    weights = random.integers(0, 2, (3, 5)).astype(np.float32)
    weights[2] = 0
    return logits, {"labels": labels, "weights": weights}


def test_sum_over_predicted_tokens_is_scikit_learns(case):
    logits, batch = case
    total, weight, metrics = loss(jnp.asarray(logits), batch)
    real = batch["weights"] > 0
    chances = np.exp(logits.astype(np.float64))
    chances /= chances.sum(-1, keepdims=True)
    expected = log_loss(batch["labels"][real], chances[real], labels=range(7), normalize=False)
    assert float(weight) == real.sum()
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["accuracy"]) == (logits.argmax(-1) == batch["labels"])[real].sum()


def test_rows_add_up_to_the_batch(case):
    logits, batch = case
    total, weight, _ = loss(jnp.asarray(logits), batch)
    sums = np.asarray(row_sums(jnp.asarray(logits), batch))
    np.testing.assert_allclose(sums.sum(0), [float(total), float(weight)], rtol=1e-6)
    assert (sums[2] == 0).all()
