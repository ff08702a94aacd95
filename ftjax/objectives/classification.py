"""Sorting texts, or pairs of texts, into classes."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy.special import softmax

from ftjax.data.examples import Examples
from ftjax.data.labels import describe_labels, encode_labels
from ftjax.data.sources import Records
from ftjax.evaluation import baselines
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.metrics import (
    CLASS_METRICS,
    classification_metrics,
    confusion_counts,
    label_intervals,
    label_metrics,
    per_class_report,
)
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import classes
from ftjax.losses.forward import Forward
from ftjax.objectives.base import LossSums, metric_field
from ftjax.objectives.texts import TextObjective

LABEL_FIELDS: Fields = {
    "data.label_field": Field("label", "Column with the label."),
    "data.shots": Field(
        None,
        "Learn from so many examples of each class only, drawn at random by data.split_seed; from "
        "all of a class that has fewer.",
        optional=int,
        minimum=1,
    ),
}


class Classification(TextObjective):
    """Sorts texts into classes by softmax cross-entropy; see `Objective`.

    Attributes:
        class_weights: weight of an example by its class, or None.
    """

    metrics: ClassVar = CLASS_METRICS
    problem_type = "single_label_classification"
    gives_labels = True
    fields: ClassVar[Fields] = {
        **TextObjective.fields,
        **LABEL_FIELDS,
        "objective.label_smoothing": Field(
            0.0, "Share of the target spread over classes.", minimum=0.0, below=1.0
        ),
        "objective.class_weights": Field(
            "none",
            "Weight of an example by its class: 'none', 'balanced' (inverse to the class's "
            "frequency), 'square_root' of that, or your own as 'spam=5,ham=1'.",
        ),
        **metric_field(metrics, "macro_f1"),
    }

    def __init__(self, config: Settings, folder, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self.class_weights: tuple[float, ...] | None = None
        self._positive = 0

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Two numbers for one thing, or as of all texts."""
        if config.data.shots is not None and config.data.train_limit is not None:
            return (
                f"config.data.shots = {config.data.shots} and config.data.train_limit = "
                f"{config.data.train_limit} both say how much is learned from; set one of them."
            )
        return super().problem(config)

    @property
    def label_fields(self) -> dict[str, str]:
        """One column."""
        return {"label": self.config.data.label_field}

    def read_labels(self, split: str, records: Records) -> np.ndarray:
        """Numbers of classes, int32 [examples]; the training split says which classes there are."""
        if split == "train":
            _, found = encode_labels(records)
            self.facts["classes"] = self._in_order_of_head(found)
        labels, _ = encode_labels(records, classes=self.classes)
        self._check_metric(labels, split)
        if split == "train":
            self._positive = int(np.bincount(labels, minlength=len(self.classes)).argmin())
            self.class_weights = classes.class_weights(
                labels, self.classes, self.config.objective.get("class_weights", "none")
            )
        return labels

    def describe_labels(self, split: str) -> str:
        """How many examples each class has."""
        return describe_labels(self.labels[split], self.classes)

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy, smoothed and weighted as the config says."""
        return classes.loss(
            forward.outputs,
            forward.batch,
            label_smoothing=self.config.objective.label_smoothing,
            class_weights=self.class_weights,
        )

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `classification_metrics`; `f1` is about the rarer of two classes in training."""
        return classification_metrics(self.labels[split], outputs, self._positive)

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `label_intervals`."""
        predictions = outputs["test"].argmax(-1)
        return label_intervals(self.labels["test"], predictions, len(self.classes))

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Scores of each class, and the confusion matrix, rows by class."""
        labels, predictions = self.labels["test"], outputs["test"].argmax(-1)
        return {
            "classes": self.classes,
            "per_class": per_class_report(labels, predictions, self.classes),
            "confusion_matrix": confusion_counts(labels, predictions, len(self.classes)),
        }

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Majority, TF-IDF with logistic regression, the frozen network with a linear head."""
        if not self.config.evaluation.baselines:
            return {}
        train, validation, test = (self.labels[n] for n in ("train", "validation", "test"))
        predictions = {
            "majority": baselines.majority(train, len(test)),
            "tfidf_logistic_regression": baselines.tfidf_logistic_regression(
                (self.texts["train"], train),
                (self.texts["validation"], validation),
                self.texts["test"],
            ),
            "frozen_linear_head": self.of_frozen_network(features),
        }
        return {
            name: label_metrics(test, found, len(self.classes), self._positive)
            for name, found in predictions.items()
        }

    def of_frozen_network(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Classes of the test texts by a linear head on the network as it was, int [examples].

        Args:
            features: split -> [examples, hidden].
        """
        train, validation = ((features[n], self.labels[n]) for n in ("train", "validation"))
        return baselines.linear_head(train, validation, features["test"])

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`label`, and `probabilities` by class, the likeliest first."""
        rows = []
        for probabilities in softmax(outputs.astype(np.float64), axis=-1):
            order = np.argsort(-probabilities)
            scores = {self.classes[i]: round(float(probabilities[i]), 4) for i in order}
            rows.append({"label": self.classes[order[0]], "probabilities": scores})
        return rows

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The probabilities."""
        return [f"{share:6.1%}  {name}" for name, share in prediction["probabilities"].items()]

    def marks(self, prediction: Mapping[str, Any]) -> dict[str, float]:
        """The one."""
        return {prediction["label"]: prediction["probabilities"][prediction["label"]]}

    def _check_metric(self, labels: np.ndarray, split: str) -> None:
        metric, present = self.config.evaluation.metric, len(np.unique(labels))
        if metric == "f1" and len(self.classes) != 2:
            raise ValueError(
                f"config.evaluation.metric = 'f1' is that of one of two classes, and there are "
                f"{len(self.classes)}; choose 'macro_f1'."
            )
        if metric == "roc_auc" and split == "validation" and present < 2:
            raise ValueError(
                "config.evaluation.metric = 'roc_auc' needs examples of two classes or more, and "
                "the validation split has a single one; choose another metric or split."
            )
