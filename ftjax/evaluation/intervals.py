"""How sure scores are: 95 % intervals by percentile bootstrap over the examples.

(Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.)
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000
Interval = tuple[float, float]
Score = Callable[[np.ndarray], np.ndarray]


def interval_of_mean(values: np.ndarray) -> Interval:
    """Of a mean.

    Of differences between two networks' values for the same examples it is the paired one.

    Args:
        values: float [examples].
    """
    if not np.any(values != values[0]):
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def intervals_of_sums(rows: np.ndarray, scores: Mapping[str, Score]) -> dict[str, Interval]:
    """Of scores that are functions of sums over the examples, such as an F1 of its counts.

    Args:
        rows: [examples, columns], what each example adds to the sums.
        scores: name -> (sums, float64 [resamples, columns], -> scores [resamples]).
    """
    rows = np.asarray(rows, np.float64)
    rng, count = np.random.default_rng(0), len(rows)
    drawn = (rng.integers(count, size=count) for _ in range(RESAMPLES))
    sums = np.stack([np.bincount(chosen, minlength=count) @ rows for chosen in drawn])
    found = {name: np.percentile(score(sums), [2.5, 97.5]) for name, score in scores.items()}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def f1_intervals(labels: np.ndarray, predicted: np.ndarray) -> dict[str, Interval]:
    """Of `micro_f1` (of single labels the accuracy) and `macro_f1`, 0 for what never occurs.

    Args:
        labels: bool [examples, labels].
        predicted: bool [examples, labels].
    """
    rows = np.concatenate([2 * (labels & predicted), labels.astype(int) + predicted], axis=1)

    def macro(sums: np.ndarray) -> np.ndarray:
        return ratio(*np.split(sums, 2, axis=1)).mean(1)

    def micro(sums: np.ndarray) -> np.ndarray:
        part, whole = np.split(sums, 2, axis=1)
        return ratio(part.sum(1), whole.sum(1))

    return intervals_of_sums(rows, {"micro_f1": micro, "macro_f1": macro})


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where the whole is."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
