import numpy as np
import pytest
from sklearn import metrics

from ftjax.evaluation.metrics import calibration_error, classification_metrics


def test_scores_are_scikit_learns():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 4)) * 3, random.integers(0, 4, 50)
    found = classification_metrics(labels, logits.astype(np.float32))
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    answers = logits.argmax(-1)
    assert found["accuracy"] == metrics.accuracy_score(labels, answers)
    assert found["macro_f1"] == metrics.f1_score(labels, answers, average="macro")
    assert found["loss"] == pytest.approx(metrics.log_loss(labels, chances), rel=1e-5)


def test_calibration_by_hand():
    """Bin (0.6, 0.667]: two answers of 0.65, one right; bin (0.867, 0.933]: one of 0.9, right."""
    chances = np.array([[0.65, 0.35], [0.65, 0.35], [0.9, 0.1]])
    expected = (2 * abs(0.5 - 0.65) + abs(1 - 0.9)) / 3
    assert calibration_error(np.array([0, 1, 0]), chances) == pytest.approx(expected)


def test_sure_and_right_is_calibrated():
    assert calibration_error(np.array([0, 1]), np.eye(2)) == 0
    assert calibration_error(np.array([1, 0]), np.eye(2)) == 1


def test_huge_logits_give_no_nan():
    found = classification_metrics(np.array([0, 1]), np.array([[1e4, 0], [1e4, 0]], np.float32))
    assert np.isfinite(list(found.values())).all()


def test_one_example():
    found = classification_metrics(np.array([1]), np.array([[0.0, 1.0]]))
    assert found["accuracy"] == found["macro_f1"] == 1
