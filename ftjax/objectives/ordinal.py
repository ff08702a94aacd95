"""Sorting texts into classes that have an order, such as grades."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.examples import Examples
from ftjax.data.labels import describe_labels, encode_labels
from ftjax.data.sources import Records
from ftjax.evaluation import baselines
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.metrics import confusion_counts, per_class_report, refuse_no_numbers
from ftjax.evaluation.numbers import LEVEL_METRICS, level_intervals, level_metrics
from ftjax.fields import Field, Fields
from ftjax.losses import levels
from ftjax.losses.divergence import divergence
from ftjax.losses.forward import Forward
from ftjax.objectives.base import LossSums
from ftjax.objectives.fields import metric_field
from ftjax.objectives.texts import TextObjective


class Ordinal(TextObjective):
    """Asks of each level whether a text is above it; see `Objective` and `losses.levels`.

    An exported classifier gives the answers: of "above low" the chance of being above it for what
    is not below it.
    """

    metrics: ClassVar = LEVEL_METRICS
    problem_type = "multi_label_classification"
    gives_labels = True
    fields: ClassVar[Fields] = {
        **TextObjective.fields,
        "data.label_field": Field("label", "Column with the level."),
        "data.label_order": Field(
            (), "The levels, lowest first; numbers have an order of their own.", items=str
        ),
        **metric_field(metrics, "quadratic_weighted_kappa"),
    }

    @property
    def levels(self) -> list[str]:
        """Names, lowest first."""
        return self.facts["levels"]

    @property
    def label_fields(self) -> dict[str, str]:
        """One column."""
        return {"label": self.config.data.label_field}

    def read_labels(self, split: str, records: Records) -> np.ndarray:
        """Numbers of levels, int32 [examples]; the training split says which there are."""
        if split == "train":
            _, names = encode_labels(records)
            self.facts["levels"] = self._in_order(names)
            self.facts["classes"] = [f"above {name}" for name in self.levels[:-1]]
        return encode_labels(records, "label", self.levels)[0]

    def _in_order(self, names: list[str]) -> list[str]:
        order = self.config.data.label_order
        if order:
            if len(set(order)) < len(order):
                raise ValueError(f"config.data.label_order names a level twice: {tuple(order)}.")
            if left_out := set(names) - set(order):
                raise ValueError(
                    f"config.data.label_order has no {sorted(left_out)[0]!r}, which is a label of "
                    "the training split; put it in its place."
                )
            if lacking := [name for name in order if name not in names]:
                raise ValueError(
                    f"config.data.label_order has {lacking[0]!r}, and no text of the training "
                    "split; leave it out."
                )
            return list(order)
        try:
            return sorted(names, key=float)
        except ValueError:
            raise ValueError(
                f"The labels {', '.join(names[:5])} are no numbers: say in config.data.label_order "
                "how they follow one another, lowest first."
            ) from None

    def describe_labels(self, split: str) -> str:
        """How many examples each level has, lowest first."""
        return describe_labels(self.labels[split], self.levels)

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the levels."""
        return levels.loss(forward.outputs, forward.batch)

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """Of the levels' probabilities."""
        return divergence(
            levels.log_probabilities(first), levels.log_probabilities(second), weights
        )

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `level_metrics`; and `loss`, the mean cross-entropy in nats."""
        refuse_no_numbers(outputs)
        labels = self.labels[split]
        batch = {"labels": labels, "weights": np.ones(len(labels), np.float32)}
        total, weight, _ = levels.loss(jnp.asarray(outputs), batch)
        found = level_metrics(labels, _levels(outputs), len(self.levels))
        return found | {"loss": float(total / weight)}

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `level_intervals`."""
        return level_intervals(self.labels["test"], _levels(outputs["test"]), len(self.levels))

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Scores of each level, and the confusion matrix, rows by level."""
        labels, found = self.labels["test"], _levels(outputs["test"])
        return {
            "classes": self.levels,
            "per_class": per_class_report(labels, found, self.levels),
            "confusion_matrix": confusion_counts(labels, found, len(self.levels)),
        }

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """The middle level, and ridge regression on TF-IDF and on the frozen network's features."""
        if not self.config.evaluation.baselines:
            return {}
        tfidf = baselines.tfidf_features(self.texts["train"])
        of_words = {name: tfidf(texts) for name, texts in self.texts.items()}
        truth = self.labels["test"]
        found = {
            "median": np.full(len(truth), np.median(self.labels["train"])),
            "tfidf_ridge": baselines.ridge(of_words, self.labels, sparse_features=True),
            "frozen_ridge": baselines.ridge(features, self.labels, sparse_features=False),
        }
        highest = len(self.levels) - 1
        return {
            name: level_metrics(truth, np.clip(values.round(), 0, highest).astype(int), highest + 1)
            for name, values in found.items()
        }

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`label`, the middle one by probability, and `probabilities`, the lowest level first."""
        logs = levels.log_probabilities(jnp.asarray(outputs))
        chances = np.exp(np.asarray(logs, np.float64))
        return [
            {
                "label": self.levels[level],
                "probabilities": {
                    name: round(float(share), 4)
                    for name, share in zip(self.levels, row, strict=True)
                },
            }
            for level, row in zip(_levels(outputs), chances, strict=True)
        ]

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The probabilities; a star before the level."""
        return [
            f"{'*' if name == prediction['label'] else ' '} {share:6.1%}  {name}"
            for name, share in prediction["probabilities"].items()
        ]

    def marks(self, prediction: Mapping[str, Any]) -> dict[str, float]:
        """The one."""
        return {prediction["label"]: prediction["probabilities"][prediction["label"]]}


def _levels(outputs: np.ndarray) -> np.ndarray:
    return np.asarray(levels.median_level(jnp.asarray(outputs)))
