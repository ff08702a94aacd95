"""Saying which of several labels a text has: any number of them, or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from ftjax.data.examples import Examples
from ftjax.data.label_sets import (
    describe_label_sets,
    encode_label_columns,
    encode_label_sets,
    encode_label_vector,
)
from ftjax.data.sources import Records
from ftjax.evaluation import baselines
from ftjax.evaluation.intervals import Interval, f1_intervals
from ftjax.evaluation.label_sets import (
    HALF,
    LABEL_SET_METRICS,
    label_set_metrics,
    per_label_report,
    probabilities,
    set_scores,
    tuned_thresholds,
)
from ftjax.evaluation.measurement import Measurement
from ftjax.fields import Field, Fields, Settings
from ftjax.files import write_json_atomically
from ftjax.losses import label_sets
from ftjax.losses.forward import Forward
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums
from ftjax.objectives.fields import metric_field
from ftjax.objectives.texts import TextObjective

LABEL_FIELD: Fields = {"data.label_field": Field("label", "Column with the labels of a text.")}


class MultiLabel(TextObjective):
    """Says yes or no to each label by sigmoid cross-entropy; see `Objective`.

    The probabilities from which on a text has a label are chosen on the validation split, and kept
    with the run. So the scores of the validation split itself flatter; those of the test split are
    what they are.

    Attributes:
        pos_weight: what a text with a label counts, by label, or None.
    """

    metrics: ClassVar = LABEL_SET_METRICS
    problem_type = "multi_label_classification"
    gives_labels = True
    fields: ClassVar[Fields] = {
        **TextObjective.fields,
        "data.label_format": Field(
            "list",
            "How a record holds its labels: a list of their names, a 0 or 1 for each in a list, or "
            "a column of 0 or 1 for each.",
            options={
                "list": {
                    **LABEL_FIELD,
                    "data.label_separator": Field(
                        None,
                        "What stands between names, where the list is a text such as 'a|b'.",
                        optional=str,
                    ),
                },
                "zeros_and_ones": {
                    **LABEL_FIELD,
                    "data.label_names": Field(
                        (), "The labels in the order of the list.", items=str, required=True
                    ),
                },
                "columns": {
                    "data.label_columns": Field(
                        (), "The columns, named like the labels.", items=str, required=True
                    ),
                },
            },
        ),
        "objective.pos_weight": Field(
            "none",
            "What a text that has a label counts: 'none', 'balanced' (as much as those without), "
            "'square_root' of that, or your own as 'spam=5,ham=1'.",
        ),
        "objective.focal_gamma": Field(
            0.0, "How much less what is clear already counts (focal loss).", minimum=0.0
        ),
        "objective.thresholds": Field(
            "per_label",
            "Probability from which on a text has a label: chosen on validation for each label, "
            "one for all, or a half.",
            choices=("per_label", "shared", "half"),
        ),
        **metric_field(metrics, "macro_f1"),
    }

    def __init__(self, config: Settings, folder, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self.pos_weight: tuple[float, ...] | None = None

    @property
    def label_fields(self) -> dict[str, str]:
        """One column, or one for each label."""
        data = self.config.data
        if data.label_format == "columns":
            return {f"label {name}": name for name in data.label_columns}
        return {"label": data.label_field}

    def read_labels(self, split: str, records: Records) -> np.ndarray:
        """Zeros and ones, int32 [examples, labels]."""
        labels = self._encoded(records)
        if split == "train":
            if len(missing := np.flatnonzero(~labels.any(0))):
                raise ValueError(
                    f"{records.name}: no record has the label {self.classes[missing[0]]!r}, so it "
                    "cannot be learned. Add examples or leave it out."
                )
            how = self.config.objective.pos_weight
            self.pos_weight = label_sets.pos_weight(labels, self.classes, how)
        elif split == "validation":
            self._check_metric(labels)
        return labels

    def _encoded(self, records: Records) -> np.ndarray:
        data = self.config.data
        if data.label_format == "columns":
            self.facts["classes"] = list(data.label_columns)
            return encode_label_columns(records, self.label_fields)
        if data.label_format == "zeros_and_ones":
            self.facts["classes"] = list(data.label_names)
            return encode_label_vector(records, data.label_names)
        separator = data.label_separator
        if "classes" not in self.facts:
            _, found = encode_label_sets(records, separator=separator)
            self.facts["classes"] = self._in_order_of_head(found)
        return encode_label_sets(records, self.classes, separator=separator)[0]

    def _check_metric(self, labels: np.ndarray) -> None:
        metric = self.config.evaluation.metric
        having = labels.any(0)
        if metric == "roc_auc" and not (having & ~labels.all(0)).any():
            needed = "texts with it and without it"
        elif metric == "mean_average_precision" and not having.any():
            needed = "texts with it"
        else:
            return
        raise ValueError(
            f"config.evaluation.metric = {metric!r} needs a label with {needed} in the validation "
            "split; choose another metric or split."
        )

    def describe_labels(self, split: str) -> str:
        """How many examples each label has."""
        return describe_label_sets(self.labels[split], self.classes)

    def loss(self, forward: Forward) -> LossSums:
        """Binary cross-entropy, weighted and focused as the config says."""
        return label_sets.loss(
            forward.outputs,
            forward.batch,
            pos_weight=self.pos_weight,
            focal_gamma=self.config.objective.focal_gamma,
        )

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """Of yes and no, summed over labels."""
        return label_sets.divergence(first, second, weights)

    def measurement(self) -> Measurement:
        """Scores at thresholds that the validation split's outputs say."""

        def score(found: dict[str, np.ndarray]) -> dict[str, float]:
            thresholds = self._thresholds(found)
            return {
                f"{split}/{name}": value
                for split, outputs in found.items()
                for name, value in label_set_metrics(
                    self.labels[split], outputs, thresholds
                ).items()
            }

        return Measurement(self.examples, self.outputs, score)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `label_set_metrics`; at the thresholds that are kept."""
        return label_set_metrics(self.labels[split], outputs, self._kept_thresholds())

    def export(self, network: Network, folder: str | Path) -> None:
        """As of other texts; beside it `thresholds.json`, label -> probability."""
        super().export(network, folder)
        kept = dict(zip(self.classes, self.facts["thresholds"], strict=True))
        write_json_atomically(Path(folder) / "thresholds.json", kept)

    def _thresholds(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Those that the validation split's outputs say; a half where there are none."""
        if "validation" not in outputs:
            return np.full(len(self.classes), HALF)
        how = self.config.objective.thresholds
        return tuned_thresholds(self.labels["validation"], outputs["validation"], how)

    def _kept_thresholds(self) -> np.ndarray:
        return np.asarray(self.facts["thresholds"])

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `f1_intervals`; the thresholds stay as they are."""
        said = probabilities(outputs["test"]) >= self._thresholds(outputs)
        return f1_intervals(self.labels["test"] > 0, said)

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Scores and threshold of each label."""
        thresholds = self._thresholds(outputs)
        report = per_label_report(self.labels["test"], outputs["test"], thresholds, self.classes)
        return {"classes": self.classes, "per_class": report}

    def learned_facts(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The thresholds."""
        return {"thresholds": self._thresholds(outputs).tolist()}

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """No label at all, and a linear model for each label on TF-IDF or the frozen network.

        Their thresholds are chosen as those of the network.
        """
        if not self.config.evaluation.baselines:
            return {}
        tfidf = baselines.tfidf_features(self.texts["train"])
        of_words = {name: tfidf(texts) for name, texts in self.texts.items()}
        found = {
            "tfidf_logistic_regression": baselines.one_vs_rest(
                of_words, self.labels, sparse_features=True
            ),
            "frozen_linear_head": baselines.one_vs_rest(
                features, self.labels, sparse_features=False
            ),
        }
        truth = self.labels["test"]
        scores = {"no_label": set_scores(truth, np.zeros_like(truth))}
        for name, logits in found.items():
            thresholds = self._thresholds(logits)
            scores[name] = label_set_metrics(truth, logits["test"], thresholds)
        return scores

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`labels`, those that a text has, and `probabilities` of all, the likeliest first."""
        thresholds, rows = self._kept_thresholds(), []
        for chances in probabilities(outputs):
            order = np.argsort(-chances)
            scores = {self.classes[i]: round(float(chances[i]), 4) for i in order}
            labels = [self.classes[i] for i in order if chances[i] >= thresholds[i]]
            rows.append({"labels": labels, "probabilities": scores})
        return rows

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The probabilities; a star before the labels that a text has."""
        return [
            f"{'*' if name in prediction['labels'] else ' '} {share:6.1%}  {name}"
            for name, share in prediction["probabilities"].items()
        ]

    def marks(self, prediction: Mapping[str, Any]) -> dict[str, float]:
        """Those that the text has, the likeliest first."""
        return {label: prediction["probabilities"][label] for label in prediction["labels"]}
