"""Scores from labels and outputs; whole splits at once, so batches cannot change them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from ftjax.evaluation.intervals import Interval, f1_intervals, intervals_of_sums

CALIBRATION_BINS = 15


CLASS_METRICS = {
    "macro_f1": "higher",
    "accuracy": "higher",
    "f1": "higher",
    "matthews_correlation": "higher",
    "roc_auc": "higher",
    "loss": "lower",
    "calibration_error": "lower",
}
"""What is scored -> which way is better."""


def classification_metrics(
    labels: np.ndarray, logits: np.ndarray, positive: int | None = None
) -> dict[str, float]:
    """How well logits sort examples into classes.

    Args:
        labels: int [examples].
        logits: float [examples, classes].
        positive: of two classes the one that `f1` is about; by default the rarer one here, the
            second if both are as frequent. Give that of training, so that splits can be compared.

    Returns:
        What `label_metrics` gives, `loss` (mean cross-entropy in nats), `calibration_error`, and
        `roc_auc`: the area under the ROC curve, of more than two classes each against the rest in
        the mean over those that occur; left out where all examples are of one class.

    Raises:
        ValueError: logits that are NaN or infinite.
    """
    refuse_no_numbers(logits)
    log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    probabilities = np.exp(log_probabilities)
    return {
        **label_metrics(labels, logits.argmax(-1), logits.shape[-1], positive),
        **_roc_auc(labels, probabilities),
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "calibration_error": calibration_error(labels, probabilities),
    }


def refuse_no_numbers(logits: np.ndarray) -> None:
    """Refuses outputs [examples, ...] that are NaN or infinite.

    Raises:
        ValueError: names the first example with one.
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(-1))
    if len(broken):
        raise ValueError(
            f"{len(broken):,} of {len(logits):,} examples have outputs that are no numbers (NaN or "
            f"infinite), example {broken[0] + 1} first: the network is broken, such as by a "
            "learning rate that is too high."
        )


def label_metrics(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, positive: int | None = None
) -> dict[str, float]:
    """Scores of predicted classes.

    Args:
        labels: int [examples].
        predictions: int [examples].
        num_classes: of the task, whether or not all of them occur here.
        positive: as for `classification_metrics`.

    Returns:
        `accuracy`, `macro_f1` (mean F1 over all classes of the task; 0 for one that neither occurs
        nor is predicted), `matthews_correlation`, and with two classes `f1` of one of them.
    """
    options: dict[str, Any] = {"labels": np.arange(num_classes), "zero_division": 0}
    scores = {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", **options)),
        "matthews_correlation": _matthews_correlation(labels, predictions),
    }
    if num_classes == 2:
        if positive is None:
            positive = int(np.sum(labels) * 2 <= len(labels))
        each: Any = f1_score(labels, predictions, **options, average=None)  # pyright: ignore
        scores["f1"] = float(each[positive])
    return scores


def label_intervals(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> dict[str, Interval]:
    """95 % intervals of `accuracy` and `macro_f1`; see `label_metrics`."""
    classes = np.arange(num_classes)
    found = f1_intervals(labels[:, None] == classes, predictions[:, None] == classes)
    return {"accuracy": found["micro_f1"], "macro_f1": found["macro_f1"]}


def top_k_hits(labels: np.ndarray, outputs: np.ndarray, count: int) -> np.ndarray:
    """Whether each label is among the so many likeliest classes, bool [examples].

    Args:
        labels: int [examples].
        outputs: float [examples, classes].
        count: of classes; with no more than these, all labels are.
    """
    own = np.take_along_axis(outputs, labels[:, None], axis=1)
    return (outputs > own).sum(1) < count


def per_class_report(
    labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of examples of each class, 0 where undefined.

    Args:
        labels: int [examples].
        predictions: int [examples].
        classes: names.

    Returns:
        Name of the class -> `precision`, `recall`, `f1`, `support`.
    """
    options: dict[str, Any] = {"labels": np.arange(len(classes)), "zero_division": 0}
    columns: Any = precision_recall_fscore_support(labels, predictions, **options)
    names = ("precision", "recall", "f1", "support")
    rows = zip(*columns, strict=True)
    return {
        name: {key: value.item() for key, value in zip(names, row, strict=True)}
        for name, row in zip(classes, rows, strict=True)
    }


def confusion_counts(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> list[list[int]]:
    """Examples by class (row) and predicted class (column), [classes][classes].

    Args:
        labels: int [examples].
        predictions: int [examples].
        num_classes: of the task.
    """
    return confusion_matrix(labels, predictions, labels=np.arange(num_classes)).tolist()


def _matthews_correlation(labels: np.ndarray, predictions: np.ndarray) -> float:
    # Without any variation scikit-learn warns, and gives 0 too.
    if len(np.unique([labels, predictions])) < 2:
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    present = np.unique(labels)
    if len(present) < 2:
        return {}
    if probabilities.shape[1] == 2:
        present = present[-1:]
    areas = [roc_auc_score(labels == index, probabilities[:, index]) for index in present]
    return {"roc_auc": float(np.mean(areas))}


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


PERPLEXITY_METRICS = {"perplexity": "lower", "loss": "lower"}
"""What is scored -> which way is better."""


def perplexity(sums: np.ndarray) -> dict[str, float]:
    """`loss`, the mean per token in nats, and `perplexity`, its exponential.

    Args:
        sums: [rows, 2 or more], sum of losses and number of tokens of each row.
    """
    total, tokens = sums[:, :2].astype(np.float64).sum(0)
    return {"loss": float(total / tokens), "perplexity": float(np.exp(total / tokens))}


def token_intervals(sums: np.ndarray, right: str | None = None) -> dict[str, Interval]:
    """95 % intervals of `loss` and `perplexity`, over the rows.

    Args:
        sums: [rows, 2 or more], sum of losses, number of tokens and perhaps of right ones of each.
        right: the name of the share of these.
    """
    scores = {
        "loss": lambda totals: totals[:, 0] / totals[:, 1],
        "perplexity": lambda totals: np.exp(totals[:, 0] / totals[:, 1]),
    }
    if right is not None:
        scores[right] = lambda totals: totals[:, 2] / totals[:, 1]
    return intervals_of_sums(sums, scores)


MASKED_TOKEN_METRICS = {"loss": "lower", "accuracy": "higher", "bits_per_byte": "lower"}
"""What is scored -> which way is better."""


def masked_token_metrics(sums: np.ndarray, tokens_per_byte: float) -> dict[str, float]:
    """How well masked tokens are guessed.

    Args:
        sums: [rows, 3], sum of losses, number of tokens to guess and of right ones of each row.
        tokens_per_byte: how many tokens a byte of the texts (in UTF-8) takes on average.

    Returns:
        `loss` (mean per token in nats), `accuracy`, and `bits_per_byte`: what a byte of the texts
        would cost in bits if all tokens cost as much as those that were masked. Unlike the loss it
        can be compared between tokenizers.
    """
    total, tokens, right = sums.astype(np.float64).sum(0)
    bits_per_byte = total / tokens / np.log(2) * tokens_per_byte
    return {
        "loss": float(total / tokens),
        "accuracy": float(right / tokens),
        "bits_per_byte": float(bits_per_byte),
    }


SUPERVISED_TOKEN_METRICS = {
    "loss": "lower",
    "perplexity": "lower",
    "bits_per_byte": "lower",
    "mean_token_accuracy": "higher",
}
"""What is scored -> which way is better."""


def supervised_token_metrics(sums: np.ndarray, text_bytes: int) -> dict[str, float]:
    """How well the tokens that are learned are predicted.

    Args:
        sums: [rows, 4], as `losses.tokens.row_sums_and_entropy`.
        text_bytes: of the text that these tokens stand for, in UTF-8.

    Returns:
        What `perplexity` gives; `mean_token_accuracy`; `entropy`, the mean of the predictions' in
        nats; and `bits_per_byte`, what a byte of the text costs in bits, the ends of turns
        included. Unlike the loss it can be compared between tokenizers. Left out where there is no
        text.
    """
    total, tokens, right, entropy = sums.astype(np.float64).sum(0)
    per_byte = {"bits_per_byte": float(total / np.log(2) / text_bytes)} if text_bytes else {}
    return {
        **perplexity(sums),
        "mean_token_accuracy": float(right / tokens),
        "entropy": float(entropy / tokens),
        **per_byte,
    }
