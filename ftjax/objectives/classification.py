"""Sorting texts, or pairs of texts, into classes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from scipy.special import softmax

from ftjax.data.examples import Examples, TextExamples, text_examples
from ftjax.data.labels import describe_labels, encode_labels
from ftjax.data.sources import Records
from ftjax.data.text import describe_text
from ftjax.evaluation import baselines
from ftjax.evaluation.measurement import Retention
from ftjax.evaluation.metrics import (
    classification_metrics,
    confusion_counts,
    label_metrics,
    per_class_report,
)
from ftjax.evaluation.retention import PROBE_FIELDS, probe_retention
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import classes
from ftjax.losses.forward import Forward
from ftjax.models import family_of
from ftjax.models.heads import TextClassifier, token_table
from ftjax.objectives.base import LossSums, Objective, buckets_problem, metric_field
from ftjax.pretrained.load import read_config
from ftjax.randomness import run_key


class Classification(Objective):
    """Sorts texts into classes by softmax cross-entropy; see `Objective`.

    Attributes:
        labels: split -> int32 [examples].
        texts: split -> the texts as they came, one or two of each example; for baselines.
        class_weights: weight of an example by its class, or None.
    """

    metrics: ClassVar = {
        "macro_f1": "higher",
        "accuracy": "higher",
        "f1": "higher",
        "matthews_correlation": "higher",
        "roc_auc": "higher",
        "loss": "lower",
        "calibration_error": "lower",
    }
    fields: ClassVar[Fields] = {
        "model.pooling": Field(
            "mean",
            "Tokens to text: mean of real tokens, first or last token, or the published pooler.",
            choices=("mean", "first", "last", "pooler"),
        ),
        "model.head_dropout": Field(0.1, "Dropout before the new head.", minimum=0.0, below=1.0),
        "data.text_field": Field("text", "Column with the text."),
        "data.second_text_field": Field(None, "Column with a second text.", optional=str),
        "data.label_field": Field("label", "Column with the label."),
        "data.buckets": Field(
            (32, 64, 128, 256),
            "Lengths in tokens that rows are padded to; the last truncates.",
            minimum=3,
            items=int,
        ),
        "tuning.head_epochs": Field(
            0,
            "Epochs for the new head alone, on cached features, before the rest (LP-FT).",
            minimum=0,
        ),
        "objective.label_smoothing": Field(
            0.0, "Share of the target spread over classes.", minimum=0.0, below=1.0
        ),
        "objective.class_weights": Field(
            "none",
            "Weight of an example by its class: 'none', 'balanced' (inverse to the class's "
            "frequency), 'square_root' of that, or your own as 'spam=5,ham=1'.",
        ),
        "optimizer.head_learning_rate_factor": Field(
            1.0, "The new head's learning rate, relative to the rest.", above=0.0, maximum=1e4
        ),
        **metric_field(metrics, "macro_f1"),
        "evaluation.baselines": Field(True, "Also score majority, TF-IDF and the frozen network."),
        **PROBE_FIELDS,
    }
    has_new_head = True

    def __init__(self, config: Settings, folder, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self.labels: dict[str, np.ndarray] = {}
        self.texts: dict[str, list[tuple[str, ...]]] = {}
        self.class_weights: tuple[float, ...] | None = None

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Buckets that do not rise, or a comparison with predictions that mean nothing."""
        if config.penalties.get("kl_to_base", 0.0) > 0 and config.tuning.head_epochs == 0:
            return (
                "config.penalties.kl_to_base compares with the predictions before tuning, which a "
                "new head makes at random. Give it an opinion first: set tuning.head_epochs to 1 "
                "or more."
            )
        return buckets_problem(config.data.buckets)

    @property
    def network_name(self) -> str:
        """The published network that the pooling needs; of T5, the encoder.

        Raises:
            ValueError: the family is not known, or has no such network.
        """
        family = family_of(read_config(self.folder).get("model_type"))
        if self.config.model.pooling == "pooler":
            name, remedy = "pooled", "set config.model.pooling to 'mean', 'first' or 'last'"
        elif "seq2seq_lm" in family.networks:
            name, remedy = "encoder", "choose a text encoder, a decoder or T5"
        else:
            name, remedy = "backbone", ""
        if name not in family.networks:
            raise ValueError(
                f"{self.config.model.reference}: the family {family.model_type} has no network "
                f"{name!r} to sort texts with; {remedy}."
            )
        return name

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return self.facts["classes"]

    def read_split(self, split: str) -> TextExamples:
        """Texts with `labels`; the training split says which classes there are."""
        records = self.load(split, self.prediction_fields | {"label": self.config.data.label_field})
        labels, self.facts["classes"] = encode_labels(records, "label", self.facts.get("classes"))
        self.labels[split] = labels
        self._check_metric(split)
        examples = self._examples(records, {"labels": labels})
        columns = tuple(self.prediction_fields)
        self.texts[split] = [tuple(record[name] for name in columns) for record in records]
        if split == "train":
            self.class_weights = classes.class_weights(
                labels, self.classes, self.config.objective.class_weights
            )
        text = describe_text(examples.tokens, examples.buckets[-1])
        self.notes.append(f"{split}: {text} ({describe_labels(labels, self.classes)})")
        return examples

    def network(self, backbone: nnx.Module) -> TextClassifier:
        """A linear layer over one vector per text, its parameters new.

        Raises:
            ValueError: a network without tokens, or whose first token sees no other.
        """
        # Only to see that it has one.
        token_table(backbone)
        if self.config.model.pooling == "first" and hasattr(backbone, "init_cache"):
            raise ValueError(
                "config.model.pooling = 'first': the first token of a decoder sees no other one; "
                "set it to 'last' or 'mean'."
            )
        return TextClassifier(
            backbone,
            len(self.classes),
            pooling=self.config.model.pooling,
            dropout_rate=self.config.model.head_dropout,
            rngs=nnx.Rngs(params=run_key(self.config.seed, "head")),
        )

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy, smoothed and weighted as the config says."""
        return classes.loss(
            forward.outputs,
            forward.batch,
            label_smoothing=self.config.objective.label_smoothing,
            class_weights=self.class_weights,
        )

    def outputs(self, network: nnx.Module, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Logits [rows, classes]."""
        return network(batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `classification_metrics`; `f1` is about the rarer of two classes in training."""
        return classification_metrics(self.labels[split], outputs, self._positive)

    def details(self, outputs: np.ndarray) -> dict[str, Any]:
        """Scores of each class, and the confusion matrix, rows by class."""
        labels, predictions = self.labels["test"], outputs.argmax(-1)
        return {
            "classes": self.classes,
            "per_class": per_class_report(labels, predictions, self.classes),
            "confusion_matrix": confusion_counts(labels, predictions, len(self.classes)),
        }

    def retention(self) -> Retention | None:
        """A linear probe on unrelated text."""
        if not self.config.retention.enabled:
            return None
        return probe_retention(self.config.retention, self.tokenizer, self.features)

    def general_text(self, records: Records) -> TextExamples:
        """Texts as they are."""
        return text_examples(records, self.tokenizer, self.config.data.buckets)

    @property
    def wants_features(self) -> bool:
        """For the frozen network with a linear head."""
        return self.config.evaluation.baselines

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
            "frozen_linear_head": baselines.linear_head(
                (features["train"], train),
                (features["validation"], validation),
                features["test"],
            ),
        }
        return {
            name: label_metrics(test, found, len(self.classes), self._positive)
            for name, found in predictions.items()
        }

    @property
    def prediction_fields(self) -> dict[str, str]:
        """One text or two."""
        data = self.config.data
        fields = {"text": data.text_field}
        if data.second_text_field is not None:
            fields["second_text"] = data.second_text_field
        return fields

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Texts as they are.

        Raises:
            ValueError: pairs given to a run of single texts, or the other way round.
        """
        pairs = self.config.data.second_text_field is not None
        if any((record.get("second_text") is not None) != pairs for record in records):
            wanted = "pairs of texts" if pairs else "single texts"
            raise ValueError(f"This run was trained on {wanted}; give it {wanted}.")
        return self._examples(Records("texts", list(records)), {})

    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """`label`, and `probabilities` by class, the likeliest first."""
        rows = []
        for probabilities in softmax(outputs.astype(np.float64), axis=-1):
            order = np.argsort(-probabilities)
            scores = {self.classes[i]: round(float(probabilities[i]), 4) for i in order}
            rows.append({"label": self.classes[order[0]], "probabilities": scores})
        return rows

    def _check_metric(self, split: str) -> None:
        metric, present = self.config.evaluation.metric, len(np.unique(self.labels[split]))
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

    @property
    def _positive(self) -> int:
        return int(np.bincount(self.labels["train"], minlength=len(self.classes)).argmin())

    def _examples(self, records: Records, columns: Mapping[str, np.ndarray]) -> TextExamples:
        pairs = self.config.data.second_text_field is not None
        return text_examples(
            records,
            self.tokenizer,
            self.config.data.buckets,
            second_text_field="second_text" if pairs else None,
            columns=columns,
        )
