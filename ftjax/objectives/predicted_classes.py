"""What is said of classes that were predicted, of texts and of images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from ftjax.evaluation.metrics import confusion_counts, per_class_report


def predicted_classes(logits: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """`label`, and `probabilities` by class, the likeliest first.

    Args:
        logits: float [records, classes].
        classes: their names.
    """
    rows = []
    for probabilities in softmax(logits.astype(np.float64), axis=-1):
        order = np.argsort(-probabilities)
        scores = {classes[i]: round(float(probabilities[i]), 4) for i in order}
        rows.append({"label": classes[order[0]], "probabilities": scores})
    return rows


def lines_of(prediction: Mapping[str, Any]) -> list[str]:
    """The probabilities, for a person."""
    return [f"{share:6.1%}  {name}" for name, share in prediction["probabilities"].items()]


def marks_of(prediction: Mapping[str, Any]) -> dict[str, float]:
    """The label, with its probability."""
    return {prediction["label"]: prediction["probabilities"][prediction["label"]]}


def details_of(labels: np.ndarray, logits: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of each class, and the confusion matrix, rows by class.

    Args:
        labels: int [examples].
        logits: float [examples, classes].
        classes: their names.
    """
    predictions = logits.argmax(-1)
    return {
        "classes": list(classes),
        "per_class": per_class_report(labels, predictions, classes),
        "confusion_matrix": confusion_counts(labels, predictions, len(classes)),
    }
