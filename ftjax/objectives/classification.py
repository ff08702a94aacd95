"""Sorting texts, or pairs of texts, into classes."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from ftjax.data.examples import Examples
from ftjax.data.labels import describe_labels, encode_labels
from ftjax.data.sources import Records
from ftjax.evaluation import baselines
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.metrics import (
    CLASS_METRICS,
    classification_metrics,
    label_intervals,
    label_metrics,
)
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import classes
from ftjax.losses.forward import Forward
from ftjax.models.heads import PublishedClassifier, TextClassifier
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums
from ftjax.objectives.class_teachers import (
    CLASS_TEACHER,
    class_teacher,
    facts_of_teacher,
    with_class_teacher,
    with_kept_logits,
    with_projection,
)
from ftjax.objectives.fields import metric_field
from ftjax.objectives.predicted_classes import details_of, lines_of, marks_of, predicted_classes
from ftjax.objectives.teachers import Teacher
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
        **CLASS_TEACHER,
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
            self.facts |= facts_of_teacher(self.config)
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
        """Cross-entropy, smoothed and weighted as the config says, and a teacher's."""
        found = classes.loss(
            forward.outputs,
            forward.batch,
            label_smoothing=self.config.objective.label_smoothing,
            class_weights=self.class_weights,
        )
        weights = classes.example_weights(forward.batch, self.class_weights)
        return with_class_teacher(self.config, forward, found, weights)

    def network(self, backbone: Network) -> TextClassifier | PublishedClassifier:
        """As of all such objectives; with a layer towards a teacher's features if they are learned.

        Raises:
            ValueError: a published head beside them; or as of all.
        """
        network = super().network(backbone)
        return with_projection(network, self.facts.get("teacher_width"), self.config.seed)

    def teacher(self) -> Teacher | None:
        """A classifier of the same classes."""
        return class_teacher(self)

    def with_teacher(self, found: np.ndarray) -> Self:
        """The same, with the teacher's logits and features."""
        return with_kept_logits(self, found)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `classification_metrics`; `f1` is about the rarer of two classes in training."""
        return classification_metrics(self.labels[split], outputs, self._positive)

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `label_intervals`."""
        predictions = outputs["test"].argmax(-1)
        return label_intervals(self.labels["test"], predictions, len(self.classes))

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Scores of each class, and the confusion matrix."""
        return details_of(self.labels["test"], outputs["test"], self.classes)

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
        return predicted_classes(outputs, self.classes)

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The probabilities."""
        return lines_of(prediction)

    def marks(self, prediction: Mapping[str, Any]) -> dict[str, float]:
        """The one."""
        return marks_of(prediction)

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
