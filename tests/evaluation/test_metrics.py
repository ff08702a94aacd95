import numpy as np
import pytest
from sklearn import metrics

from ftjax.evaluation.metrics import (
    calibration_error,
    classification_metrics,
    confusion_counts,
    label_metrics,
    per_class_report,
    supervised_token_metrics,
)


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
    assert found["accuracy"] == 1
    assert found["macro_f1"] == 0.5
    assert "roc_auc" not in found


def test_macro_f1_is_over_all_classes_of_the_task():
    labels = np.array([0, 0, 1, 1])
    assert label_metrics(labels, labels, 3)["macro_f1"] == pytest.approx(2 / 3)
    assert label_metrics(labels, np.array([0, 0, 1, 2]), 3)["macro_f1"] == pytest.approx(5 / 9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_class(value):
    logits = np.zeros((4, 2), np.float32)
    logits[2, 0] = value
    with pytest.raises(ValueError, match=r"1 of 4 examples have outputs .* example 3 first"):
        classification_metrics(np.array([0, 0, 0, 1]), logits)


def test_two_classes():
    """Class 1 is rarer: 2 examples, one found, one wrongly found; F1 is 2 / (2 + 1 + 1)."""
    labels, predictions = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    assert label_metrics(labels, predictions, 2)["f1"] == 0.5
    assert label_metrics(1 - labels, 1 - predictions, 2)["f1"] == 0.5
    assert label_metrics(labels, predictions, 2, positive=0)["f1"] == pytest.approx(2 / 3)
    scores = np.array([0.1, 0.2, 0.7, 0.9, 0.4])
    logits = np.stack([np.zeros(5), scores], 1)
    found = classification_metrics(labels, logits)
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, scores))


def test_many_classes_are_scikit_learns():
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(60, 4)), random.integers(0, 4, 60)
    found, answers = classification_metrics(labels, logits), logits.argmax(-1)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = metrics.roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    assert found["roc_auc"] == pytest.approx(expected)
    assert found["matthews_correlation"] == metrics.matthews_corrcoef(labels, answers)
    assert "f1" not in found
    report = metrics.classification_report(labels, answers, output_dict=True)
    ours = per_class_report(labels, answers, "abcd")
    for index, name in enumerate("abcd"):
        theirs = report[str(index)]
        assert ours[name] == pytest.approx(
            {key.removesuffix("-score"): value for key, value in theirs.items()}
        )


def test_confusion_of_a_class_that_does_not_occur():
    counts = confusion_counts(np.array([0, 1, 1]), np.array([0, 1, 0]), 3)
    assert counts == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_supervised_tokens_by_hand():
    sums = np.asarray([[3.0, 4.0, 2.0, 8.0], [1.0, 4.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = supervised_token_metrics(sums, 10)
    assert found == pytest.approx(
        {
            "loss": 0.5,
            "perplexity": np.exp(0.5),
            "mean_token_accuracy": 0.75,
            "entropy": 1.0,
            "bits_per_byte": 4 / np.log(2) / 10,
        }
    )
    assert "bits_per_byte" not in supervised_token_metrics(sums, 0)
