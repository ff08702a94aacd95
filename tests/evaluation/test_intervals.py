"""Intervals against scipy's bootstrap over indices of examples, with scikit-learn's scores."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import cohen_kappa_score, f1_score, root_mean_squared_error

from ftjax.evaluation.entities import entity_intervals, entity_report
from ftjax.evaluation.intervals import f1_intervals, interval_of_mean
from ftjax.evaluation.label_sets import set_scores
from ftjax.evaluation.metrics import label_intervals, token_intervals
from ftjax.evaluation.numbers import level_intervals, number_intervals
from ftjax.evaluation.spans import span_intervals

# Both sides draw at random, 2,000 and 3,000 times; a 90 % interval would differ by 0.08.
ROOM = 0.06


def assert_same(found, count, score):
    """An interval is the one that scipy draws, to some part of its width."""
    expected = bootstrap(
        (np.arange(count),),
        score,
        vectorized=False,
        n_resamples=3000,
        method="percentile",
        rng=1,
    ).confidence_interval
    width = expected.high - expected.low
    assert width > 0
    assert found == pytest.approx((expected.low, expected.high), abs=ROOM * width)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_of_classes(rng):
    labels = rng.integers(3, size=120)
    said = np.where(rng.random(120) < 0.6, labels, rng.integers(3, size=120))
    found = label_intervals(labels, said, 3)
    assert_same(found["accuracy"], 120, lambda i: np.mean(labels[i] == said[i]))
    options = {"average": "macro", "labels": [0, 1, 2], "zero_division": 0}
    assert_same(found["macro_f1"], 120, lambda i: f1_score(labels[i], said[i], **options))


def test_of_sets_of_labels(rng):
    labels = rng.random((90, 4)) < [0.5, 0.3, 0.2, 0.1]
    said = labels ^ (rng.random((90, 4)) < 0.15)
    found = f1_intervals(labels, said)
    for name in ("micro_f1", "macro_f1"):
        assert_same(found[name], 90, lambda i, name=name: set_scores(labels[i], said[i])[name])


def test_of_numbers_and_levels(rng):
    targets = rng.normal(size=80)
    said = targets + rng.normal(size=80)
    found = number_intervals(targets, said)
    assert_same(found["rmse"], 80, lambda i: root_mean_squared_error(targets[i], said[i]))
    assert_same(found["mae"], 80, lambda i: np.mean(np.abs(targets[i] - said[i])))
    labels = rng.integers(4, size=80)
    said = np.clip(labels + rng.integers(-1, 2, size=80), 0, 3)
    found = level_intervals(labels, said, 4)
    assert_same(
        found["quadratic_weighted_kappa"],
        80,
        lambda i: cohen_kappa_score(labels[i], said[i], weights="quadratic"),
    )
    assert_same(found["accuracy"], 80, lambda i: np.mean(labels[i] == said[i]))


def test_of_tokens(rng):
    counts = rng.integers(5, 40, size=60)
    sums = np.stack([counts * rng.gamma(4, 0.5, size=60), counts, counts // 2], axis=1)
    found = token_intervals(sums, "accuracy")

    def total(i, column):
        return sums[i, column].sum() / sums[i, 1].sum()

    assert_same(found["loss"], 60, lambda i: total(i, 0))
    assert_same(found["perplexity"], 60, lambda i: np.exp(total(i, 0)))
    assert_same(found["accuracy"], 60, lambda i: total(i, 2))


def test_of_entities(rng):
    truth = [list(rng.choice(["O", "B-a", "B-b"], size=6)) for _ in range(50)]
    said = [[t if rng.random() < 0.8 else "O" for t in tags] for tags in truth]
    found = entity_intervals(truth, said)

    def report(i, name):
        return entity_report([truth[k] for k in i], [said[k] for k in i])[""][name]

    for name in ("precision", "recall", "f1"):
        if found[name] != (1.0, 1.0):
            assert_same(found[name], 50, lambda i, name=name: report(i, name))
    # Nothing is said that is not there.
    assert found["precision"] == (1.0, 1.0)
    assert found["recall"][1] < 1


def test_of_answers():
    found = span_intervals([["a cat"], ["dogs"], []], ["the cat", "cats", ""])
    assert found["exact_match"] == found["f1"] == interval_of_mean(np.array([100.0, 0.0, 100.0]))


def test_at_the_edges():
    """One example; nothing wrong; nothing there."""
    assert label_intervals(np.array([1]), np.array([1]), 3) == {
        "accuracy": (1.0, 1.0),
        "macro_f1": (1 / 3, 1 / 3),
    }
    same = np.zeros(5, int)
    assert level_intervals(same, same, 3)["quadratic_weighted_kappa"] == (0.0, 0.0)
    nothing = np.zeros((4, 2), bool)
    assert f1_intervals(nothing, nothing) == {"micro_f1": (0.0, 0.0), "macro_f1": (0.0, 0.0)}
    assert entity_intervals([["O"]], [["O"]])["f1"] == (0.0, 0.0)
    found = number_intervals(np.ones(3), np.full(3, 3.0))
    assert found["mae"] == (2.0, 2.0) and found["rmse"] == pytest.approx((2.0, 2.0))
