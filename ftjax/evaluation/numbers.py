"""Scores of predicted numbers and levels."""

from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score, r2_score

from ftjax.evaluation.intervals import Interval, interval_of_mean, intervals_of_sums
from ftjax.evaluation.metrics import label_intervals, label_metrics

NUMBER_METRICS = {
    "rmse": "lower",
    "mae": "lower",
    "pearson": "higher",
    "spearman": "higher",
    "r2": "higher",
    "loss": "lower",
}
"""What is scored -> which way is better."""


def number_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """How near predictions are, in the unit of the targets.

    Args:
        targets: float [examples].
        predictions: float [examples].

    Returns:
        `rmse` and `mae`; and where the targets are not all the same, `pearson` and `spearman` (0
        for predictions that are all the same) and `r2`, the share of the variance explained.
    """
    errors = predictions.astype(np.float64) - targets
    scores = {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}
    if np.ptp(targets) == 0:
        return scores
    pearson: Any = 0.0
    spearman: Any = 0.0
    if np.ptp(predictions) > 0:
        pearson = pearsonr(targets, predictions)[0]
        spearman = spearmanr(targets, predictions)[0]
    return scores | {
        "pearson": float(pearson),
        "spearman": float(spearman),
        "r2": float(r2_score(targets, predictions)),
    }


def number_intervals(targets: np.ndarray, predictions: np.ndarray) -> dict[str, Interval]:
    """95 % intervals of `rmse` and `mae`; see `number_metrics`."""
    errors = predictions.astype(np.float64) - targets
    root = {"rmse": lambda sums: np.sqrt(sums[:, 0] / len(errors))}
    return {
        **intervals_of_sums(errors[:, None] ** 2, root),
        "mae": interval_of_mean(np.abs(errors)),
    }


LEVEL_METRICS = {
    "quadratic_weighted_kappa": "higher",
    "mae": "lower",
    "accuracy": "higher",
    "macro_f1": "higher",
    "loss": "lower",
}
"""What is scored -> which way is better."""


def level_metrics(labels: np.ndarray, predictions: np.ndarray, levels: int) -> dict[str, float]:
    """How near predicted levels are.

    Args:
        labels: int [examples], from 0.
        predictions: int [examples].
        levels: how many there are.

    Returns:
        `quadratic_weighted_kappa` (1 if all is right, 0 by chance, also where labels and
        predictions are all of one level), `mae` in levels, `accuracy` and `macro_f1`.
    """
    scores = label_metrics(labels, predictions, levels)
    same = np.ptp([labels, predictions]) == 0
    kappa = 0.0
    if not same:
        options = {"weights": "quadratic", "labels": np.arange(levels)}
        kappa = float(cohen_kappa_score(labels, predictions, **options))
    return {
        "quadratic_weighted_kappa": kappa,
        "mae": float(np.mean(np.abs(labels - predictions))),
        "accuracy": scores["accuracy"],
        "macro_f1": scores["macro_f1"],
    }


def level_intervals(
    labels: np.ndarray, predictions: np.ndarray, levels: int
) -> dict[str, Interval]:
    """95 % intervals of `quadratic_weighted_kappa`, `mae` and `accuracy`; see `level_metrics`."""
    labels, predictions = labels.astype(np.float64), predictions.astype(np.float64)
    columns = (labels, predictions, labels**2, predictions**2, (labels - predictions) ** 2)

    def kappa(sums: np.ndarray) -> np.ndarray:
        first, second, first_squares, second_squares, apart = sums.T
        # What is apart by chance: pairs of any label with any prediction.
        chance = first_squares + second_squares - 2 * first * second / len(labels)
        # Of one level alone it is that of chance, as of `level_metrics`.
        return 1 - np.divide(apart, chance, out=np.ones_like(apart), where=chance > 0)

    found = intervals_of_sums(np.stack(columns, axis=1), {"quadratic_weighted_kappa": kappa})
    return {
        **found,
        "mae": interval_of_mean(np.abs(labels - predictions)),
        "accuracy": label_intervals(labels, predictions, levels)["accuracy"],
    }
