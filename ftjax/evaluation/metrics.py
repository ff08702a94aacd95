"""Scores from labels and outputs; whole splits at once, so batches cannot change them."""

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score

CALIBRATION_BINS = 15


def classification_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """How well logits sort examples into classes.

    Args:
        labels: int [examples].
        logits: float [examples, classes].

    Returns:
        `accuracy`, `macro_f1` (see `label_metrics`), `loss` (mean cross-entropy in nats) and
        `calibration_error`.
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    return {
        **label_metrics(labels, logits.argmax(-1)),
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "calibration_error": calibration_error(labels, np.exp(log_probabilities)),
    }


def label_metrics(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """`accuracy`, and `macro_f1`: the mean F1 over the classes among labels and predictions.

    Args:
        labels: [examples].
        predictions: [examples].
    """
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
    }


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error: mean |accuracy - confidence| over 15 equally wide bins.

    (Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3.)

    Args:
        labels: int [examples].
        probabilities: float [examples, classes].
    """
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    # Bins are (low, high], as in the paper.
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / counts.sum())


def perplexity(sums: np.ndarray) -> dict[str, float]:
    """`loss`, the mean per token in nats, and `perplexity`, its exponential.

    Args:
        sums: [rows, 2], sum of losses and number of tokens of each row.
    """
    total, tokens = sums.astype(np.float64).sum(0)
    return {"loss": float(total / tokens), "perplexity": float(np.exp(total / tokens))}
