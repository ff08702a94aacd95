"""Scores of sets of labels, and the thresholds from which on a text has one."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import log_expit
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    roc_auc_score,
)

from ftjax.evaluation.intervals import ratio
from ftjax.evaluation.metrics import calibration_error, refuse_no_numbers

HALF = 0.5


LABEL_SET_METRICS = {
    "macro_f1": "higher",
    "micro_f1": "higher",
    "samples_f1": "higher",
    "micro_precision": "higher",
    "micro_recall": "higher",
    "macro_precision": "higher",
    "macro_recall": "higher",
    "subset_accuracy": "higher",
    "micro_f1_with_none": "higher",
    "macro_f1_with_none": "higher",
    "samples_f1_with_none": "higher",
    "roc_auc": "higher",
    "mean_average_precision": "higher",
    "lrap": "higher",
    "loss": "lower",
    "calibration_error": "lower",
}
"""What is scored -> which way is better."""


def label_set_metrics(
    labels: np.ndarray, logits: np.ndarray, thresholds: np.ndarray
) -> dict[str, float]:
    """How well logits say which labels texts have.

    Args:
        labels: int [examples, labels], zeros and ones.
        logits: float [examples, labels].
        thresholds: float [labels], the probabilities from which on a text has a label.

    Returns:
        What `set_scores` gives; `loss`, the mean binary cross-entropy in nats; and what needs no
        threshold: `roc_auc` and `mean_average_precision`, means over the labels that some of these
        texts have (and some have not), left out where there is none; `lrap`, the label ranking
        average precision; `calibration_error`, the mean over labels.

    Raises:
        ValueError: logits that are NaN or infinite.
    """
    refuse_no_numbers(logits)
    logits = logits.astype(np.float64)
    chances = probabilities(logits)
    losses = np.where(labels > 0, -log_expit(logits), -log_expit(-logits))
    return {
        **set_scores(labels, chances >= thresholds),
        **_ranking_scores(labels, chances),
        "loss": float(losses.mean()),
        "calibration_error": float(np.mean(_calibration_errors(labels, chances))),
    }


def set_scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores of predicted sets of labels, each 0 where it is undefined.

    Args:
        labels: int [examples, labels], zeros and ones.
        predicted: bool [examples, labels].

    Returns:
        `micro_f1` (of all pairs of a text and a label), `macro_f1` (mean over labels) and
        `samples_f1` (mean over texts), precision and recall of the first two, and
        `subset_accuracy`, the share of texts with exactly the right set. `..._with_none` are the
        F1s with "no label at all" counted as a label, as LexGLUE scores (Chalkidis et al. 2022).
    """
    labels, predicted = labels > 0, predicted > 0
    scores = _f1_scores(labels, predicted)
    with_none = _f1_scores(_with_none(labels), _with_none(predicted))
    hits, said, true = _counts(labels, predicted, 0)
    return {
        **scores,
        "micro_precision": float(ratio(hits.sum(), said.sum())),
        "micro_recall": float(ratio(hits.sum(), true.sum())),
        "macro_precision": float(ratio(hits, said).mean()),
        "macro_recall": float(ratio(hits, true).mean()),
        "subset_accuracy": float((labels == predicted).all(1).mean()),
        **{f"{name}_with_none": value for name, value in with_none.items()},
    }


def per_label_report(
    labels: np.ndarray, logits: np.ndarray, thresholds: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1, support, threshold and calibration error of each label.

    Args:
        labels: int [examples, labels], zeros and ones.
        logits: float [examples, labels].
        thresholds: float [labels].
        classes: names of the labels.
    """
    chances = probabilities(logits)
    hits, said, true = _counts(labels > 0, chances >= thresholds, 0)
    columns: Mapping[str, np.ndarray] = {
        "precision": ratio(hits, said),
        "recall": ratio(hits, true),
        "f1": ratio(2 * hits, said + true),
        "support": true,
        "threshold": np.asarray(thresholds),
        "calibration_error": np.asarray(_calibration_errors(labels, chances)),
    }
    return {
        name: {key: column[index].item() for key, column in columns.items()}
        for index, name in enumerate(classes)
    }


def tuned_thresholds(labels: np.ndarray, logits: np.ndarray, how: str) -> np.ndarray:
    """Probabilities from which on a text has a label, float64 [labels].

    Args:
        labels: int [examples, labels], zeros and ones, of texts that are not those to be scored.
        logits: float [examples, labels].
        how: "per_label" (each has the best F1), "shared" (one, with the best micro-F1), or "half".
    """
    if how == "half":
        return np.full(labels.shape[1], HALF)
    chances = probabilities(logits)
    if how == "shared":
        return np.full(labels.shape[1], best_threshold(labels.ravel(), chances.ravel()))
    return np.array([best_threshold(*column) for column in zip(labels.T, chances.T, strict=True)])


def best_threshold(labels: np.ndarray, chances: np.ndarray) -> float:
    """Where to cut for the best F1: between two probabilities, of equal cuts that nearest to 1/2.

    Args:
        labels: int [examples], zeros and ones; without any one, 1/2 is as good as another.
        chances: float [examples].
    """
    order = np.argsort(-chances, kind="stable")
    chances, labels = chances[order], labels[order]
    following = np.append(chances[1:], -1.0)
    cuts = np.flatnonzero(chances > following)
    if not labels.any() or not len(cuts):
        return HALF
    scores = 2 * np.cumsum(labels)[cuts] / (cuts + 1 + labels.sum())
    places = (chances[cuts] + np.maximum(following[cuts], 0.0)) / 2
    best = np.isclose(scores, scores.max())
    return float(min(places[best], key=lambda place: abs(place - HALF)))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The sigmoid, in float64."""
    return np.exp(log_expit(logits.astype(np.float64)))


def _f1_scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    hits, said, true = _counts(labels, predicted, 0)
    each = _counts(labels, predicted, 1)
    return {
        "micro_f1": float(ratio(2 * hits.sum(), said.sum() + true.sum())),
        "macro_f1": float(ratio(2 * hits, said + true).mean()),
        "samples_f1": float(ratio(2 * each[0], each[1] + each[2]).mean()),
    }


def _counts(labels: np.ndarray, predicted: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    """Right ones, predicted ones, true ones."""
    return (labels & predicted).sum(axis), predicted.sum(axis), labels.sum(axis)


def _with_none(sets: np.ndarray) -> np.ndarray:
    return np.concatenate([sets, ~sets.any(1, keepdims=True)], axis=1)


def _ranking_scores(labels: np.ndarray, chances: np.ndarray) -> dict[str, float]:
    having = np.flatnonzero(labels.any(0))
    both = [k for k in having if not labels[:, k].all()]
    scores = {"lrap": 1.0}
    if labels.shape[1] > 1:
        scores["lrap"] = float(label_ranking_average_precision_score(labels, chances))
    if both:
        areas = [roc_auc_score(labels[:, k], chances[:, k]) for k in both]
        scores["roc_auc"] = float(np.mean(areas))
    if len(having):
        means = [average_precision_score(labels[:, k], chances[:, k]) for k in having]
        scores["mean_average_precision"] = float(np.mean(means))
    return scores


def _calibration_errors(labels: np.ndarray, chances: np.ndarray) -> list[float]:
    return [
        calibration_error(column, np.stack([1 - share, share], axis=1))
        for column, share in zip(labels.T, chances.T, strict=True)
    ]
