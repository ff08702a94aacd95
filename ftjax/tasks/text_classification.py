"""Sorting texts (or pairs of texts) into classes."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ftjax.data.batching import BatchPlan, make_batch, plan_batches
from ftjax.data.labels import describe_labels, encode_labels
from ftjax.data.sources import load_records
from ftjax.data.text import TokenizedText, describe_text, load_tokenizer, tokenize
from ftjax.evaluation import baselines
from ftjax.evaluation.metrics import classification_metrics, label_metrics
from ftjax.losses import classes
from ftjax.models import family_of
from ftjax.models.heads import TextClassifier, token_table
from ftjax.pretrained.load import read_config
from ftjax.randomness import run_key
from ftjax.tasks.retention import EncoderRetention


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """One split, tokenised.

    Attributes:
        texts: as they came, one or two of each example.
        tokens: ragged token ids.
        labels: int32 [examples], indices into the task's classes.
        fingerprint: SHA-256 of the records.
    """

    texts: list[tuple[str, ...]]
    tokens: TokenizedText
    labels: np.ndarray
    fingerprint: str


class TextClassification:
    """See `ftjax.tasks.Task`.

    Attributes:
        classes: names of the classes, in the order of the logits.
        splits: "train", "validation" and "test".
    """

    def __init__(self, config: ConfigDict, folder: Path):
        self.config = config
        self.network_name = classifier_network_name(config, folder)
        self.tokenizer = load_tokenizer(folder)
        self.classes: list[str] | None = None
        self.splits = {
            name: self._load(config.data[f"{name}_split"], limit)
            for name, limit in (
                ("train", config.data.train_limit),
                ("validation", None),
                ("test", None),
            )
        }
        self.datasets = {name: split.fingerprint for name, split in self.splits.items()}
        self.retention = None
        if config.retention.enabled:
            self.retention = EncoderRetention(
                config.retention, self.tokenizer, config.evaluation.batch_size
            )
            self.datasets |= self.retention.datasets
        self.notes = list(self._notes())
        weights = classes.balancing_weights(
            self.splits["train"].labels, len(self.classes), config.objective.class_weights
        )
        self.loss = functools.partial(
            classes.loss,
            label_smoothing=config.objective.label_smoothing,
            class_weights=weights,
        )

    def training_tokens(self) -> np.ndarray:
        """Those of the training texts."""
        return self.splits["train"].tokens.input_ids

    def facts(self) -> dict:
        """The names of the classes."""
        return {"classes": self.classes}

    def network(self, backbone: nnx.Module, seed: int) -> nnx.Module:
        """A linear layer over one vector per text."""
        return classifier(self.config, backbone, len(self.classes), seed)

    def plan(self, split: str, batch_size: int, epoch: int | None = None) -> list[BatchPlan]:
        """Which examples go together, by length."""
        return plan_batches(
            self.splits[split].tokens.lengths,
            batch_size=batch_size,
            buckets=self.config.data.buckets,
            seed=self.config.seed,
            epoch=epoch or 0,
            shuffle=epoch is not None,
        )

    def make(self, split: str, batch_size: int, plan: BatchPlan) -> dict[str, np.ndarray]:
        """A planned batch, padded to its bucket."""
        data = self.splits[split]
        return make_batch(
            data.tokens,
            data.labels,
            plan,
            batch_size=batch_size,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def count(self, split: str) -> int:
        """Texts of a split."""
        return len(self.splits[split].labels)

    def outputs(self, network: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
        """Logits [batch, classes]."""
        return network(batch)

    def features(self, network: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
        """What the head sees, [batch, hidden]."""
        return network.features(batch)

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """What the network has to beat on the test split: name -> metric -> score.

        Args:
            features: of the pretrained network, split -> [texts, hidden].
        """
        train, validation, test = (self.splits[n] for n in ("train", "validation", "test"))
        predictions = {
            "majority": baselines.majority(train.labels, len(test.labels)),
            "tfidf_logistic_regression": baselines.tfidf_logistic_regression(
                (train.texts, train.labels), (validation.texts, validation.labels), test.texts
            ),
            "frozen_linear_head": baselines.linear_head(
                (features["train"], train.labels),
                (features["validation"], validation.labels),
                features["test"],
            ),
        }
        return {
            name: label_metrics(test.labels, found, len(self.classes))
            for name, found in predictions.items()
        }

    def metrics(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Accuracy, macro-F1, cross-entropy and calibration error."""
        return classification_metrics(self.splits[split].labels, outputs)

    def _load(self, split: str, limit: int | None) -> LabelledText:
        data = self.config.data
        fields = {"text": data.text_field, "label": data.label_field}
        if data.second_text_field is not None:
            fields["second_text"] = data.second_text_field
        records = load_records(data.source, split=split, fields=fields, limit=limit)
        tokens = tokenize(
            records,
            self.tokenizer,
            max_length=data.buckets[-1],
            second_text_field="second_text" if "second_text" in fields else None,
        )
        labels, self.classes = encode_labels(records, "label", self.classes)
        columns = [name for name in ("text", "second_text") if name in fields]
        texts = [tuple(record[name] for name in columns) for record in records]
        return LabelledText(texts, tokens, labels, records.fingerprint)

    def _notes(self):
        for name, split in self.splits.items():
            counts = describe_labels(split.labels, self.classes)
            text = describe_text(split.tokens, self.config.data.buckets[-1])
            yield f"{name}: {text} ({counts})"


def classifier_network_name(config: ConfigDict, folder: Path) -> str:
    """The published network that a config's pooling needs; of T5, the encoder.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ValueError: its family is not known, or has no such network.
    """
    family = family_of(read_config(folder).get("model_type"))
    if config.model.pooling == "pooler":
        name, remedy = "pooled", "set config.model.pooling to 'mean', 'first' or 'last'"
    elif "seq2seq_lm" in family.networks:
        name, remedy = "encoder", "choose a text encoder, a decoder or T5"
    else:
        name, remedy = "backbone", ""
    if name not in family.networks:
        raise ValueError(
            f"{config.model.reference}: the family {family.model_type} has no network {name!r} to "
            f"sort texts with; {remedy}."
        )
    return name


def classifier(
    config: ConfigDict, backbone: nnx.Module, num_classes: int, seed: int
) -> TextClassifier:
    """The network of this task, its head new.

    Raises:
        ValueError: a network without tokens, or whose first token sees no other.
    """
    # Only to see that it has one.
    token_table(backbone)
    if config.model.pooling == "first" and hasattr(backbone, "init_cache"):
        raise ValueError(
            "config.model.pooling = 'first': the first token of a decoder sees no other one; set "
            "it to 'last' or 'mean'."
        )
    return TextClassifier(
        backbone,
        num_classes,
        pooling=config.model.pooling,
        dropout_rate=config.model.head_dropout,
        rngs=nnx.Rngs(params=run_key(seed, "head")),
    )
