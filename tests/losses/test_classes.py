import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from ftjax.losses.classes import class_weights, loss


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    logits = random.normal(size=(7, 4)).astype(np.float32)
    return logits, {
        "labels": random.integers(0, 4, 7),
        "weights": np.array([1, 1, 0, 1, 1, 0, 1], np.float32),
    }


def probabilities(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_sum_over_real_rows_is_scikit_learns(case):
    logits, batch = case
    total, weight, metrics = loss(jnp.asarray(logits), batch)
    real = batch["weights"] > 0
    expected = log_loss(batch["labels"][real], probabilities(logits)[real], labels=range(4))
    assert float(weight) == 5
    assert float(total) / 5 == pytest.approx(expected, abs=1e-6)
    right = (logits.argmax(-1) == batch["labels"])[real].sum()
    assert [float(x) for x in metrics["accuracy"]] == [right, 5]


def test_label_smoothing_is_its_closed_form(case):
    logits, batch = case
    total, _, _ = loss(jnp.asarray(logits), batch, label_smoothing=0.2)
    logs = np.log(probabilities(logits))
    own = logs[np.arange(7), batch["labels"]]
    expected = -((0.8 * own + 0.2 * logs.mean(-1)) * batch["weights"]).sum()
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_class_weights_weigh_loss_and_divisor(case):
    logits, batch = case
    weights = (1.0, 2.0, 0.5, 3.0)
    total, weight, metrics = loss(jnp.asarray(logits), batch, class_weights=weights)
    of_row = np.asarray(weights)[batch["labels"]] * batch["weights"]
    losses = -np.log(probabilities(logits))[np.arange(7), batch["labels"]]
    assert float(weight) == pytest.approx(of_row.sum())
    assert float(total) == pytest.approx((losses * of_row).sum(), rel=1e-6)
    # Accuracy is of examples, whatever their classes weigh.
    _, _, plain = loss(jnp.asarray(logits), batch)
    assert [float(x) for x in metrics["accuracy"]] == [float(x) for x in plain["accuracy"]]


def test_a_batch_of_nothing_but_padding_adds_nothing(case):
    logits, batch = case
    total, weight, _ = loss(jnp.asarray(logits), batch | {"weights": np.zeros(7, np.float32)})
    assert float(total) == float(weight) == 0


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 1, 2, 2])
    ours = class_weights(labels, "abc", "balanced")
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(ours, theirs)


def test_square_root_weights_lie_between_and_average_to_one():
    labels = np.array([0] * 16 + [1])
    weights = np.asarray(class_weights(labels, "ab", "square_root"))
    assert weights[1] / weights[0] == pytest.approx(4)
    assert weights[labels].mean() == pytest.approx(1)
    assert class_weights(labels, "ab", "none") is None


def test_a_class_without_examples_does_not_divide_by_zero():
    assert np.isfinite(class_weights(np.array([0, 0]), "ab", "balanced")).all()


def test_own_weights_by_name():
    assert class_weights(np.array([0]), ["ham", "spam"], "spam=5.5") == (1.0, 5.5)
    assert class_weights(np.array([0]), ["a=b", "c"], "a=b=2, c=3") == (2.0, 3.0)
    for wrong in ("spma=5", "spam", "spam=-1", "spam=nan", ""):
        with pytest.raises(ValueError, match="must be a class, '=', and a number"):
            class_weights(np.array([0]), ["ham", "spam"], wrong)
