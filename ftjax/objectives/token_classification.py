"""Tagging the words of sentences, such as the names in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import softmax

from ftjax.data.examples import Examples, text_examples
from ftjax.data.labels import some_names
from ftjax.data.sources import Records
from ftjax.data.sources.conll import goes_on_with_nothing
from ftjax.data.tagged import NOTHING, TaggedExamples, tag_names, tagged_examples, tags_of
from ftjax.data.text import describe_text
from ftjax.evaluation import baselines
from ftjax.evaluation.entities import (
    TAG_METRICS,
    entities,
    entity_intervals,
    entity_report,
    is_iob2,
)
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.measurement import Retention
from ftjax.evaluation.metrics import refuse_no_numbers
from ftjax.evaluation.retention import PROBE_FIELDS, probe_retention
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import classes
from ftjax.losses.forward import Forward
from ftjax.models.layers import Network
from ftjax.models.token_tagger import TokenTagger
from ftjax.objectives.base import LossSums, Objective, Say
from ftjax.objectives.fields import buckets_field, buckets_problem, metric_field
from ftjax.pretrained.checkpoint import Checkpoint
from ftjax.pretrained.new_head import HeadedCheckpoint, architecture, with_classes
from ftjax.randomness import run_key

OF_ENTITIES = ("f1", "precision", "recall")


class TokenClassification(Objective):
    """Gives each word of a sentence a tag by softmax cross-entropy; see `Objective`.

    The first token of a word bears its tag (as transformers' examples have it). What is scored are
    the words of the file, each once: a sentence longer than the network reads becomes windows, and
    a word that the tokenizer makes nothing of counts as missed.
    """

    metrics: ClassVar = TAG_METRICS
    fields: ClassVar[Fields] = {
        "data.tokens_field": Field("tokens", "Column with the list of words."),
        "data.tags_field": Field("ner_tags", "Column with the list of their tags."),
        **buckets_field(
            (32, 64, 128, 256),
            "Lengths in tokens that rows are padded to; longer sentences become windows.",
        ),
        "data.stride": Field(32, "Tokens that two windows of a sentence share.", minimum=0),
        "tuning.head_epochs": None,
        "penalties.kl_to_base": None,
        "optimizer.head_learning_rate_factor": Field(
            1.0, "The new head's learning rate, relative to the rest.", above=0.0, maximum=1e4
        ),
        "evaluation.baselines": Field(True, "Also score each word's most frequent tag."),
        **metric_field(metrics, "f1"),
        **PROBE_FIELDS,
    }
    has_new_head = True
    keeps_features = False

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self._sentences: dict[str, list[tuple[Sequence[str], list[str]]]] = {}
        self._tagged: dict[str, TaggedExamples] = {}

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Buckets that do not rise."""
        return buckets_problem(config.data.buckets)

    @property
    def classes(self) -> list[str]:
        """The tags, in the order of the logits."""
        return self.facts["classes"]

    @property
    def network_name(self) -> str:
        """The family's classifier of tokens."""
        return "token_classification"

    def checkpoint(self, say: Say) -> Path | Checkpoint:
        """The folder, with a head for these tags where it has none."""
        key, accept = run_key(self.config.seed, "head"), tuple(self.config.model.accept_fields)
        checkpoint = HeadedCheckpoint(
            self.folder, self.network_name, self.classes, key, accept_fields=accept
        )
        if checkpoint.new:
            say(f"{self.folder}: of the head, {some_names(list(checkpoint.new))} begin at random.")
        return checkpoint

    def network(self, backbone: Network) -> TokenTagger:
        """The published classifier of tokens."""
        return TokenTagger(backbone)

    def exported_fields(self) -> dict[str, Any]:
        """With the names of the tags."""
        fields = with_classes(super().exported_fields(), self.classes)
        kind = architecture(fields["model_type"], "ForTokenClassification")
        return fields | {"architectures": [kind]}

    def read_split(self, split: str) -> TaggedExamples:
        """Sentences with their tags; the training split says which there are."""
        data = self.config.data
        records = self.load(split, {"tokens": data.tokens_field, "tags": data.tags_field})
        tags = tags_of(records)
        if split == "train":
            self.facts["classes"] = tag_names(tags)
            self._check_classes()
        examples = self._tagged[split] = self._examples(records, self.classes)
        self._sentences[split] = list(zip(examples.words, tags, strict=True))
        words, windows = int(examples.word_counts.sum()), len(examples.lengths)
        found = f"{len(tags):,} sentences of {words:,} words"
        if is_iob2(self.classes):
            found += f" with {len(entities(tags)):,} entities"
            if wrong := sum(len(goes_on_with_nothing(one)) for one in tags):
                found += (
                    f" ({wrong:,} tags I-name go on with what did not begin, as IOB1 has it: "
                    "strict scores count no entity there, so write B-name where one begins)"
                )
        if windows > len(tags):
            found += f", in {windows:,} windows"
        if lost := int((examples.places[:, 0] < 0).sum()):
            found += f"; {lost:,} words of which the tokenizer makes nothing count as missed"
        tokens = describe_text(examples.examples.tokens)
        self.notes.append(f"{split}: {found} ({tokens})")
        return examples

    def _check_classes(self) -> None:
        metric = self.config.evaluation.metric
        if len(self.classes) < 2:
            raise ValueError(
                f"The training split has the single tag {self.classes}; two or more are needed."
            )
        if metric in OF_ENTITIES and not is_iob2(self.classes):
            raise ValueError(
                f"config.evaluation.metric = {metric!r} counts entities, and the tags "
                f"({some_names(self.classes)}) are not in IOB2's form (O, B-name, I-name); set it "
                "to 'accuracy', or rewrite the tags."
            )

    def _examples(self, records: Records, classes: Sequence[str] | None) -> TaggedExamples:
        data = self.config.data
        return tagged_examples(
            records, self.tokenizer, data.buckets, stride=data.stride, classes=classes
        )

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the words' tags; each word counts once."""
        return classes.loss(forward.outputs, forward.batch)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The likeliest tag of each position and the loss there, float32 [rows, positions, 2]."""
        logits = network(batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        said = jnp.stack([jnp.argmax(logits, axis=-1).astype(jnp.float32), losses], axis=-1)
        return self._to_longest(said)

    def prediction_outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The logits of each position, float32 [rows, positions, tags]."""
        return self._to_longest(network(batch))

    def _to_longest(self, values: jax.Array) -> jax.Array:
        room = self.config.data.buckets[-1] - values.shape[1]
        return jnp.pad(values, ((0, 0), (0, room), (0, 0)))

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Of the words of the file; entities are micro-averaged."""
        refuse_no_numbers(outputs)
        examples = self._tagged[split]
        truth = [tags for _, tags in self._sentences[split]]
        judged = examples.by_word(outputs, 0.0)[examples.places[:, 0] >= 0]
        return {
            **self._tag_metrics(truth, self._said(examples, outputs)),
            "loss": float(judged[:, 1].astype(np.float64).mean()),
        }

    def _said(self, examples: TaggedExamples, outputs: np.ndarray) -> list[list[str]]:
        missing = self.classes.index(NOTHING) if NOTHING in self.classes else 0
        numbers = examples.by_word(outputs[..., 0], missing).astype(int)
        tags = np.asarray(self.classes, object)[numbers]
        bounds = np.cumsum(examples.word_counts)[:-1]
        return [part.tolist() for part in np.split(tags, bounds)]

    def _tag_metrics(self, truth: list[list[str]], said: list[list[str]]) -> dict[str, float]:
        words = [
            a == b
            for one, other in zip(truth, said, strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        scores = {"accuracy": float(np.mean(words))}
        if is_iob2(self.classes):
            of_all = entity_report(truth, said)[""]
            scores |= {name: of_all[name] for name in OF_ENTITIES}
        return scores

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `entity_intervals`."""
        if not is_iob2(self.classes):
            return {}
        truth = [tags for _, tags in self._sentences["test"]]
        return entity_intervals(truth, self._said(self._tagged["test"], outputs["test"]))

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Scores of each type of entity."""
        if not is_iob2(self.classes):
            return {"classes": self.classes}
        truth = [tags for _, tags in self._sentences["test"]]
        report = entity_report(truth, self._said(self._tagged["test"], outputs["test"]))
        return {"classes": self.classes, "per_class": {k: v for k, v in report.items() if k}}

    @property
    def has_baselines(self) -> bool:
        """Of words alone."""
        return self.config.evaluation.baselines

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """The tag that each word has most often in training, "O" for unknown words."""
        tag_of = baselines.most_frequent_tags(self._sentences["train"])
        sentences = self._sentences["test"]
        said = [[tag_of.get(word, NOTHING) for word in words] for words, _ in sentences]
        truth = [tags for _, tags in sentences]
        return {"most_frequent_tag": self._tag_metrics(truth, said)}

    def retention(self) -> Retention:
        """A linear probe on unrelated text."""
        return probe_retention(self.config.retention, self.tokenizer, self.features)

    def general_text(self, records: Records) -> Examples:
        """Texts as they are."""
        return text_examples(records, self.tokenizer, self.config.data.buckets)

    @property
    def prediction_fields(self) -> dict[str, str]:
        """The words."""
        return {"tokens": self.config.data.tokens_field}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> TaggedExamples:
        """Sentences; a `text` is divided at its spaces."""
        rows = [{"tokens": r["tokens"] if "tokens" in r else _divided(r["text"])} for r in records]
        return self._examples(Records("texts", rows), None)

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """The words as `tokens`, their `tags` and `scores`, the probability of each."""
        assert isinstance(examples, TaggedExamples)
        logits = examples.by_word(outputs, 0.0).astype(np.float64)
        tags = np.asarray(self.classes, object)[logits.argmax(-1)]
        scores = softmax(logits, axis=-1).max(-1).round(4)
        bounds = np.cumsum(examples.word_counts)[:-1]
        return [
            {"tokens": list(words), "tags": one.tolist(), "scores": other.tolist()}
            for words, one, other in zip(
                examples.words, np.split(tags, bounds), np.split(scores, bounds), strict=True
            )
        ]

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """The tags."""
        return [" ".join(prediction["tags"])]


def _divided(text: Any) -> Any:
    """The words of a text; anything else is refused as what it is."""
    return text.split() if isinstance(text, str) else text
