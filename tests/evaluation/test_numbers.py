"""Scores of numbers and levels against scikit-learn's and SciPy's, on a thousand random cases."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from ftjax.evaluation.numbers import level_metrics, number_metrics


def test_numbers_are_scored_as_the_libraries_do():
    random = np.random.default_rng(0)
    for _ in range(1000):
        count = random.integers(2, 40)
        targets = np.round(random.normal(size=count) * 3 + 10, 1)
        if np.ptp(targets) == 0:
            continue
        predictions = np.round(targets + random.normal(size=count), 1)
        if np.ptp(predictions) == 0:
            continue
        found = number_metrics(targets, predictions)
        assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(targets, predictions))
        assert found["mae"] == pytest.approx(metrics.mean_absolute_error(targets, predictions))
        assert found["r2"] == pytest.approx(metrics.r2_score(targets, predictions))
        assert found["pearson"] == pytest.approx(np.corrcoef(targets, predictions)[0, 1])
        ranks = [stats.rankdata(values) for values in (targets, predictions)]
        assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_numbers_without_variation():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat = number_metrics(np.array([1.0, 2.0]), np.array([1.5, 1.5]))
        assert (flat["pearson"], flat["spearman"], flat["r2"]) == (0, 0, 0)
        assert number_metrics(np.ones(3), np.arange(3.0)).keys() == {"rmse", "mae"}


def test_levels_are_scored_as_the_libraries_do():
    random = np.random.default_rng(0)
    for _ in range(1000):
        levels, count = random.integers(2, 7), random.integers(1, 40)
        labels, found = random.integers(0, levels, (2, count))
        if np.ptp([labels, found]) == 0:
            continue
        scores = level_metrics(labels, found, levels)
        # Kappa by its definition: 1 - observed disagreement / expected disagreement.
        apart = (np.subtract.outer(np.arange(levels), np.arange(levels))) ** 2
        seen = metrics.confusion_matrix(labels, found, labels=range(levels))
        expected = np.outer(seen.sum(1), seen.sum(0)) / count
        kappa = 1 - (apart * seen).sum() / (apart * expected).sum()
        assert scores["quadratic_weighted_kappa"] == pytest.approx(kappa)
        assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(labels, found))


def test_one_level_only():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = level_metrics(np.ones(3, int), np.ones(3, int), 4)
    assert scores["quadratic_weighted_kappa"] == 0 and scores["accuracy"] == 1
