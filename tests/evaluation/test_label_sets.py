"""Scores of sets of labels against scikit-learn's, on random cases."""

import warnings

import numpy as np
import pytest
from scipy.special import logit
from sklearn import metrics

from ftjax.evaluation.label_sets import (
    best_threshold,
    label_set_metrics,
    per_label_report,
    set_scores,
    tuned_thresholds,
)


def cases(count):
    random = np.random.default_rng(0)
    for _ in range(count):
        rows, classes = random.integers(1, 30), random.integers(2, 7)
        labels = (random.random((rows, classes)) < random.random()).astype(int)
        # Rounded, so that there are ties.
        logits = np.round(random.normal(size=(rows, classes)) * 2, 1)
        yield labels, logits, random.random(classes)


def test_sets_are_scored_as_scikit_learn_does():
    for labels, logits, thresholds in cases(1000):
        predicted = (1 / (1 + np.exp(-logits)) >= thresholds).astype(int)
        found = set_scores(labels, predicted)
        with_none = [
            np.concatenate([sets, 1 - sets.max(1, keepdims=True)], axis=1)
            for sets in (labels, predicted)
        ]
        for average in ("micro", "macro", "samples"):
            options = {"average": average, "zero_division": 0}
            expected = dict(
                zip(
                    (f"{average}_precision", f"{average}_recall", f"{average}_f1"),
                    metrics.precision_recall_fscore_support(labels, predicted, **options),
                    strict=False,
                )
            )
            for name in expected.keys() & found.keys():
                assert found[name] == pytest.approx(expected[name])
            assert expected.keys() <= found.keys() or average == "samples"
            f1 = metrics.f1_score(*with_none, **options)
            assert found[f"{average}_f1_with_none"] == pytest.approx(f1)
        assert found["subset_accuracy"] == metrics.accuracy_score(labels, predicted)


def test_rankings_are_scored_as_scikit_learn_does():
    for labels, logits, thresholds in cases(300):
        found = label_set_metrics(labels, logits, thresholds)
        chances = 1 / (1 + np.exp(-logits))
        assert found["lrap"] == pytest.approx(
            metrics.label_ranking_average_precision_score(labels, chances)
        )
        expected = metrics.log_loss(labels.ravel(), chances.ravel(), labels=[0, 1])
        assert found["loss"] == pytest.approx(expected)
        both = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
        assert ("roc_auc" in found) == bool(both)
        if both:
            assert found["roc_auc"] == pytest.approx(
                metrics.roc_auc_score(labels[:, both], chances[:, both], average="macro")
            )
        if labels.any(0).all():
            assert found["mean_average_precision"] == pytest.approx(
                metrics.average_precision_score(labels, chances, average="macro")
            )


def test_thresholds_have_the_best_f1_that_any_has():
    random = np.random.default_rng(0)
    for _ in range(40):
        labels = (random.random(25) < 0.3).astype(int)
        chances = np.round(random.random(25), 1)
        cut = best_threshold(labels, chances)
        scores = {
            at: metrics.f1_score(labels, chances >= at, zero_division=0)
            # Below, at and between all chances.
            for at in np.linspace(0, 1, 21)
        }
        found = metrics.f1_score(labels, chances >= cut, zero_division=0)
        assert found == pytest.approx(max(scores.values())) or not labels.any()


def test_thresholds_of_clear_cases():
    chances = np.array([0.9, 0.8, 0.3, 0.1])
    assert best_threshold(np.array([1, 1, 0, 0]), chances) == pytest.approx(0.55)
    assert best_threshold(np.zeros(4, int), chances) == 0.5
    assert best_threshold(np.ones(4, int), chances) == pytest.approx(0.05)
    # All alike: either all have it or none.
    assert best_threshold(np.array([1, 0]), np.array([0.7, 0.7])) == pytest.approx(0.35)
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 0]])
    logits = logit(np.stack([chances, [0.1, 0.2, 0.4, 0.3]], axis=1))
    np.testing.assert_allclose(tuned_thresholds(labels, logits, "per_label"), [0.55, 0.35])
    np.testing.assert_allclose(tuned_thresholds(labels, logits, "half"), [0.5, 0.5])
    shared = tuned_thresholds(labels, logits, "shared")
    assert shared[0] == shared[1] == pytest.approx(0.35)


def test_one_label_none_and_all():
    """Without warnings of scikit-learn's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in ([[1], [0]], [[0], [0]], [[1], [1]]):
            found = label_set_metrics(np.array(labels), np.array([[2.0], [-1.0]]), np.array([0.5]))
            assert all(np.isfinite(list(found.values())))
    assert found["lrap"] == 1.0 and "roc_auc" not in found
    nothing = set_scores(np.zeros((3, 2)), np.zeros((3, 2)))
    assert nothing["micro_f1"] == nothing["samples_f1"] == 0
    assert nothing["micro_f1_with_none"] == nothing["subset_accuracy"] == 1


def test_numbers_that_are_none():
    with pytest.raises(ValueError, match="1 of 2 examples have outputs that are no numbers"):
        label_set_metrics(np.eye(2), np.array([[1.0, 2.0], [np.nan, 0.0]]), np.full(2, 0.5))


def test_report_by_label():
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    logits = np.array([[3.0, -3.0], [-3.0, 3.0], [-3.0, 3.0]])
    report = per_label_report(labels, logits, np.full(2, 0.5), ["a", "b"])
    assert report["b"]["f1"] == 1 and report["b"]["support"] == 2
    expected = metrics.precision_recall_fscore_support(labels[:, 0], logits[:, 0] > 0)
    assert report["a"]["precision"] == expected[0][1]
    assert report["a"]["recall"] == expected[1][1]
    assert report["a"]["threshold"] == 0.5
    # Confident at about 0.953, right twice in three.
    assert report["a"]["calibration_error"] == pytest.approx(1 / (1 + np.exp(-3)) - 2 / 3)
