"""What is said of a text by a head on one vector of it: what its objectives share."""

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import jax
import numpy as np
from flax import nnx

from ftjax.data.examples import Examples, TextExamples, text_examples
from ftjax.data.labels import in_order_of, some_names
from ftjax.data.sources import Records
from ftjax.data.sources.splitting import drawn
from ftjax.data.text import describe_text
from ftjax.evaluation.measurement import Retention
from ftjax.evaluation.retention import PROBE_FIELDS, probe_retention
from ftjax.fields import Field, Fields, Settings
from ftjax.files import write_json_atomically
from ftjax.models import family_of
from ftjax.models.heads import PublishedClassifier, TextClassifier, token_table
from ftjax.models.layers import Network
from ftjax.objectives.base import Objective, Say
from ftjax.objectives.fields import buckets_field, buckets_problem
from ftjax.pretrained import classifier
from ftjax.pretrained.checkpoint import Checkpoint, read_config
from ftjax.pretrained.compare import merged_and_compared, outputs_on_example
from ftjax.pretrained.sentence_modules import (
    LinearHead,
    read_head,
    refuse_pickled_head,
    require_modules,
    with_head,
    write_modules,
)
from ftjax.progress import timed
from ftjax.randomness import run_key

# Of a head that is a linear layer, where the config names no rate.
HEAD_DROPOUT = 0.1
TEXT_FIELDS: Fields = {
    "data.text_field": Field("text", "Column with the text."),
    **buckets_field(
        (32, 64, 128, 256), "Lengths in tokens that rows are padded to; the last truncates."
    ),
    "evaluation.baselines": Field(True, "Also score majority, TF-IDF and the frozen network."),
    **PROBE_FIELDS,
}
NEW_HEAD: Fields = {
    "model.pooling": Field(
        "mean",
        "Tokens to text: mean of real tokens, first or last token, or the published pooler.",
        choices=("mean", "first", "last", "pooler"),
    ),
    "model.head_dropout": Field(
        HEAD_DROPOUT, "Dropout before the new head.", minimum=0.0, below=1.0
    ),
}
Classifier = TypeVar("Classifier", bound=TextClassifier)
NO_OPINION = (
    "config.penalties.kl_to_base compares with the predictions before tuning, which a new head "
    "makes at random. Give it an opinion first: set tuning.head_epochs to 1 or more."
)


class TextObjective(Objective):
    """Something that is said of a text, or of a pair of texts, by a head on one vector of it.

    Attributes:
        problem_type: what transformers calls it, for an exported classifier.
        labels: split -> what is said of its examples, [examples, ...].
        texts: split -> the texts as they came, one or two of each example; for baselines.
    """

    fields: ClassVar[Fields] = {
        "model.head": Field(
            "new",
            "'new': a linear layer over pooled tokens. 'published': the classifier that the family "
            "is published with, begun from the checkpoint's own where it has one.",
            options={"new": NEW_HEAD, "published": {}},
        ),
        "data.second_text_field": Field(None, "Column with a second text.", optional=str),
        "tuning.head_epochs": Field(
            0,
            "Epochs for the new head alone, on cached features, before the rest (LP-FT).",
            minimum=0,
        ),
        "optimizer.head_learning_rate_factor": Field(
            1.0, "The new head's learning rate, relative to the rest.", above=0.0, maximum=1e4
        ),
        **TEXT_FIELDS,
    }
    has_new_head = True
    problem_type: ClassVar[str]

    def __init__(self, config: Settings, folder, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self.labels: dict[str, np.ndarray] = {}
        self.texts: dict[str, list[tuple[str, ...]]] = {}

    def with_rows(self, rows: Mapping[str, np.ndarray]) -> Self:
        """The same with some of its examples only."""
        other = super().with_rows(rows)
        other.labels = {name: labels[rows[name]] for name, labels in self.labels.items()}
        other.texts = {name: [texts[i] for i in rows[name]] for name, texts in self.texts.items()}
        return other

    def baseline_rows(self) -> dict[str, np.ndarray]:
        """Drawn with each class in its share, where there are classes."""
        found = super().baseline_rows()
        for split, labels in self.labels.items():
            if labels.ndim == 1 and labels.dtype == np.int32:
                found[split] = drawn(labels, len(found[split]), 0)
        return found

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Buckets that do not rise, or a comparison with predictions that mean nothing."""
        if config.model.get("head") == "new" and _compares_with_a_new_head(config):
            return NO_OPINION
        return buckets_problem(config.data.buckets)

    @property
    def network_name(self) -> str:
        """The published network that the pooling needs; of T5, the encoder.

        Raises:
            ValueError: the family is not known, or has no such network.
        """
        family = family_of(read_config(self.folder).get("model_type", ""))
        if self._keeps_head and self._linear_head is None:
            name, remedy = classifier.NETWORK, "set config.model.head to 'new'"
        elif self.config.model.get("pooling") == "pooler":
            name, remedy = "pooled", "set config.model.pooling to 'mean', 'first' or 'last'"
        else:
            name, remedy = classifier.backbone_name(family), "choose a text encoder or a decoder"
        if name not in family.networks:
            raise ValueError(
                f"{self.config.model.reference}: the family {family.model_type} has no network "
                f"{name!r} to sort texts with; {remedy}."
            )
        return name

    @property
    def _keeps_head(self) -> bool:
        """Whether the published head is begun from; an objective may always have a new one."""
        return self.config.model.get("head") == "published"

    @property
    def _in_pairs(self) -> bool:
        """Whether there are two texts of each example."""
        return self.config.data.get("second_text_field") is not None

    @functools.cached_property
    def _linear_head(self) -> LinearHead | None:
        """The checkpoint's own head where it is one like ours, of an earlier run."""
        return read_head(self.folder)

    @property
    def classes(self) -> list[str]:
        """Names of what the head gives for a text, in its order."""
        return self.facts["classes"]

    @property
    @abc.abstractmethod
    def label_fields(self) -> dict[str, str]:
        """Our names -> columns of what is said of a text."""

    @abc.abstractmethod
    def read_labels(self, split: str, records: Records) -> np.ndarray:
        """What is said of a split's texts, [examples, ...]; the training split comes first.

        Raises:
            ValueError: it cannot be learned from; names the record.
        """

    @abc.abstractmethod
    def describe_labels(self, split: str) -> str:
        """What a person should know of a split's labels."""

    def read_split(self, split: str) -> TextExamples:
        """Texts with `labels`."""
        records = self.load(split, self.prediction_fields | self.label_fields)
        self.labels[split] = self.read_labels(split, records)
        examples = self._examples(records, {"labels": self.labels[split]})
        columns = tuple(self.prediction_fields)
        self.texts[split] = [tuple(record[name] for name in columns) for record in records]
        text = describe_text(examples.tokens, examples.buckets[-1])
        self.notes.append(f"{split}: {text} ({self.describe_labels(split)})")
        return examples

    def _in_order_of_head(self, found: list[str]) -> list[str]:
        """The classes of the training split in the order of the head that is begun from."""
        accept = tuple(self.config.model.accept_fields)
        if self._keeps_head:
            refuse_pickled_head(self.folder)
        published = classifier.published_classes(self.folder, accept_fields=accept)
        ordered = None if published is None else in_order_of(found, published)
        if not self._keeps_head:
            if published is not None:
                may_be_kept = ordered is not None and "head" in self.config.model
                hint = "; config.model.head = 'published' starts from it" if may_be_kept else ""
                self.notes.append(
                    f"The checkpoint's own head, for {some_names(published)}, is not used{hint}."
                )
            return found
        if ordered is not None:
            self.has_new_head = False
            self.notes.append(f"The checkpoint's own head is kept, for {some_names(ordered)}.")
            return ordered
        if published is not None and len(published) == len(found):
            raise ValueError(
                f"{self.config.data.source} has the labels {some_names(found)}, and the "
                f"checkpoint's head those of {some_names(published)}: which is which cannot be "
                "told. Name them alike, or set config.model.head to 'new'."
            )
        if published is not None:
            self.notes.append(
                f"The checkpoint's head is for {len(published)} classes "
                f"({some_names(published)}), the data have {len(found)}: a new one learns them."
            )
        if _compares_with_a_new_head(self.config):
            raise ValueError(NO_OPINION)
        return found

    def checkpoint(self, say: Say) -> Path | Checkpoint:
        """The folder; for a published head, with what of it is not there newly initialised."""
        if self.network_name != classifier.NETWORK:
            return self.folder
        checkpoint = classifier.classifier_checkpoint(
            self.folder,
            self.classes,
            int(self.tokenizer.pad_token_id),
            run_key(self.config.seed, "head"),
            accept_fields=tuple(self.config.model.accept_fields),
        )
        if checkpoint.new:
            say(f"{self.folder}: of the head, {some_names(list(checkpoint.new))} begin at random.")
        return checkpoint

    def export(self, network: Network, folder: str | Path) -> None:
        """The network with its head and the names of the classes; see `export_classifier`."""
        with timed("Merging and comparing"):
            expected = outputs_on_example(network, self.folder)
            merged_and_compared(network, self.folder)
        with timed("Writing, loading again and comparing"):
            classifier.export_classifier(
                network,
                self.folder,
                folder,
                classes=self.classes,
                problem_type=self.problem_type,
                pad_token=str(self.tokenizer.pad_token),
                longest_row=self.config.data.buckets[-1],
                expected=expected,
                accept_fields=tuple(self.config.model.accept_fields),
            )

    def export_adapter(self, network: Network, folder: str | Path) -> None:
        """The adapter; beside it our head, which peft has no place for, and the names of classes.

        Raises:
            ValueError: a head on the published pooler; or as of `save_adapter`.
        """
        ours = isinstance(network, TextClassifier)
        if ours:
            require_modules(network)
        super().export_adapter(network, folder)
        if ours:
            write_modules(Path(folder), network, self.config.data.buckets[-1])
            write_json_atomically(Path(folder) / "classes.json", self.classes)

    def network(self, backbone: Network) -> TextClassifier | PublishedClassifier:
        """The published classifier, or a linear layer over one vector per text.

        Raises:
            ValueError: a network without tokens, or whose first token sees no other.
        """
        # Only to see that it has one.
        token_table(backbone)
        model = self.config.model
        head = self._linear_head if self._keeps_head else None
        if self._keeps_head and head is None:
            return PublishedClassifier(backbone)
        rate = model.get("head_dropout", model.get("dropout"))
        rate = HEAD_DROPOUT if rate is None else rate
        if head is not None and len(head.classes) == len(self.classes):
            return with_head(backbone, head, dropout_rate=rate)
        pooling = model.pooling if head is None else head.pooling
        return self.with_new_head(TextClassifier, backbone, pooling, rate)

    def with_new_head(
        self, kind: type[Classifier], backbone: Network, pooling: str, dropout_rate: float
    ) -> Classifier:
        """A classifier of this kind with a head of the run's seed.

        Raises:
            ValueError: its first token sees no other.
        """
        if pooling == "first" and hasattr(backbone, "init_cache"):
            raise ValueError(
                "config.model.pooling = 'first': the first token of a decoder sees no other one; "
                "set it to 'last' or 'mean'."
            )
        return kind(
            backbone,
            len(self.classes),
            pooling=pooling,
            dropout_rate=dropout_rate,
            rngs=nnx.Rngs(params=run_key(self.config.seed, "head")),
        )

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What the head gives, [rows, outputs]."""
        return network(batch)

    def retention(self) -> Retention:
        """A linear probe on unrelated text."""
        return probe_retention(self.config.retention, self.tokenizer, self.features)

    def general_text(self, records: Records) -> TextExamples:
        """Texts as they are."""
        return text_examples(records, self.tokenizer, self.config.data.buckets)

    @property
    def wants_features(self) -> bool:
        """For the frozen network with a linear head."""
        return self.config.evaluation.baselines

    @property
    def prediction_fields(self) -> dict[str, str]:
        """One text or two."""
        data = self.config.data
        fields = {"text": data.text_field}
        if self._in_pairs:
            fields["second_text"] = data.second_text_field
        return fields

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Texts as they are.

        Raises:
            ValueError: pairs given to a run of single texts, or the other way round.
        """
        if any((record.get("second_text") is not None) != self._in_pairs for record in records):
            wanted = "pairs of texts" if self._in_pairs else "single texts"
            raise ValueError(f"This run was trained on {wanted}; give it {wanted}.")
        return self._examples(Records("texts", [dict(record) for record in records]), {})

    def _examples(self, records: Records, columns: Mapping[str, np.ndarray]) -> TextExamples:
        return text_examples(
            records,
            self.tokenizer,
            self.config.data.buckets,
            second_text_field="second_text" if self._in_pairs else None,
            columns=columns,
        )


def _compares_with_a_new_head(config: Settings) -> bool:
    return config.penalties.get("kl_to_base", 0.0) > 0 and config.tuning.head_epochs == 0
