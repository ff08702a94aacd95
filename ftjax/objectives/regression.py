"""Predicting a number for each text, or pair of texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.data.examples import Examples
from ftjax.data.numbers import describe_numbers, encode_numbers
from ftjax.data.sources import Records
from ftjax.evaluation import baselines
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.metrics import refuse_no_numbers
from ftjax.evaluation.numbers import NUMBER_METRICS, number_intervals, number_metrics
from ftjax.fields import Field, Fields
from ftjax.losses import numbers
from ftjax.losses.forward import Forward
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums
from ftjax.objectives.fields import metric_field
from ftjax.objectives.texts import TextObjective


class Regression(TextObjective):
    """Predicts a number by squared error; see `Objective`.

    The network learns numbers of mean 0 and deviation 1 over the training split. Both are kept with
    the run, and scores and predictions are in the unit of the file.
    """

    metrics: ClassVar = NUMBER_METRICS
    problem_type = "regression"
    fields: ClassVar[Fields] = {
        **TextObjective.fields,
        "data.label_field": Field("label", "Column with the number."),
        "objective.loss": Field(
            "mse",
            "Squared errors, or Huber's, for which large ones count less.",
            options={
                "mse": {},
                "huber": {
                    "objective.huber_delta": Field(
                        1.0, "Errors from which on, in standard deviations.", above=0.0
                    )
                },
            },
        ),
        **metric_field(metrics, "rmse"),
    }

    @property
    def label_fields(self) -> dict[str, str]:
        """One column."""
        return {"label": self.config.data.label_field}

    def read_labels(self, split: str, records: Records) -> np.ndarray:
        """Standardised numbers, float32 [examples]; the training split gives mean and deviation."""
        found = encode_numbers(records)
        if split == "train":
            if np.ptp(found) == 0:
                raise ValueError(
                    f"{records.name}: all {len(found):,} labels are {found[0]:g}; there is nothing "
                    "to learn."
                )
            self.facts["classes"] = [self.config.data.label_field]
            self.facts |= {"mean": float(found.mean()), "deviation": float(found.std())}
        metric = self.config.evaluation.metric
        if split == "validation" and np.ptp(found) == 0 and metric not in ("rmse", "mae", "loss"):
            raise ValueError(
                f"config.evaluation.metric = {metric!r} needs labels that differ, and all of the "
                "validation split are the same; choose 'rmse' or another split."
            )
        return ((found - self.facts["mean"]) / self.facts["deviation"]).astype(np.float32)

    def describe_labels(self, split: str) -> str:
        """Their range and spread."""
        return describe_numbers(self._in_unit(self.labels[split]))

    def loss(self, forward: Forward) -> LossSums:
        """Squared error in standard deviations, or Huber's."""
        return self._loss(forward.outputs, forward.batch)

    def _loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> LossSums:
        delta = self.config.objective.get("huber_delta")
        return numbers.loss(outputs, batch, huber_delta=delta)

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """Half the squared difference."""
        return numbers.divergence(first, second, weights)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `number_metrics`; `loss` is that of training, in standard deviations."""
        refuse_no_numbers(outputs)
        labels = self.labels[split]
        batch = {"labels": labels, "weights": np.ones(len(labels), np.float32)}
        total, weight, _ = self._loss(jnp.asarray(outputs), batch)
        found = number_metrics(self._in_unit(labels), self._in_unit(outputs[:, 0]))
        return found | {"loss": float(total / weight)}

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `number_intervals`."""
        truth, said = self.labels["test"], outputs["test"][:, 0]
        return number_intervals(self._in_unit(truth), self._in_unit(said))

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """The mean, and ridge regression on TF-IDF and on the frozen network's features."""
        if not self.config.evaluation.baselines:
            return {}
        tfidf = baselines.tfidf_features(self.texts["train"])
        of_words = {name: tfidf(texts) for name, texts in self.texts.items()}
        found = {
            "mean": np.zeros(len(self.labels["test"])),
            "tfidf_ridge": baselines.ridge(of_words, self.labels, sparse_features=True),
            "frozen_ridge": baselines.ridge(features, self.labels, sparse_features=False),
        }
        truth = self._in_unit(self.labels["test"])
        return {
            name: number_metrics(truth, self._in_unit(values)) for name, values in found.items()
        }

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`value`, in the unit of the file."""
        return [{"value": float(f"{value:.6g}")} for value in self._in_unit(outputs[:, 0])]

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The value."""
        return [f"{prediction['value']:g}"]

    def export(self, network: Network, folder: str | Path) -> None:
        """As of other texts, in the unit of the file: the last layer takes mean and deviation.

        Raises:
            ValueError: the published head has no bias; or as of `Objective`.
        """
        _rescale(network, self.facts["deviation"], self.facts["mean"])
        super().export(network, folder)

    def _in_unit(self, standardised: np.ndarray) -> np.ndarray:
        values = standardised.astype(np.float64)
        return values * self.facts["deviation"] + self.facts["mean"]


def _rescale(network: Network, factor: float, shift: float) -> None:
    """Output times factor plus shift, by the layer that gives it."""
    layers: list[Any] = [m for _, m in nnx.iter_modules(network) if hasattr(m, "kernel")]
    last = next(layer for layer in layers if layer.kernel.shape[-1] == 1)
    if last.bias is None:
        raise ValueError(
            "This family's published head has no bias to hold the mean of the labels; train with "
            "config.model.head = 'new'."
        )
    last.kernel[...] = last.kernel[...] * factor
    last.bias[...] = last.bias[...] * factor + shift
