"""Embeddings: texts that belong together are near each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import pearsonr, spearmanr

from ftjax.data.examples import Examples, text_examples
from ftjax.data.labels import encode_labels
from ftjax.data.numbers import encode_numbers
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadDataError
from ftjax.data.text_groups import TextGroups, text_groups
from ftjax.evaluation.baselines import tfidf_features
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.evaluation.measurement import Retention
from ftjax.evaluation.retention import PROBE_FIELDS, probe_retention
from ftjax.evaluation.retrieval import RETRIEVAL_METRICS, retrieval_scores
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import contrastive
from ftjax.losses.forward import Forward
from ftjax.models import family_of
from ftjax.models.layers import Network
from ftjax.models.sentence_encoder import SentenceEncoder
from ftjax.objectives.base import LossSums, Objective
from ftjax.objectives.fields import metric_field
from ftjax.pretrained.checkpoint import read_config
from ftjax.pretrained.classifier import backbone_name
from ftjax.pretrained.sentence_modules import write_embedding_modules

SCORE_METRICS = {"spearman_cosine": "higher", "pearson_cosine": "higher"}
SCALE = {"objective.scale": Field(20.0, "What cosines are multiplied by.", above=0.0)}
LOSSES: dict[str, Fields] = {
    "multiple_negatives": {
        **SCALE,
        "data.label_field": Field(
            None,
            "Column whose equal values make texts no negatives of each other in a batch, and right "
            "answers to each other in a search.",
            optional=str,
        ),
    },
    "triplet": {
        "objective.margin": Field(5.0, "By how much the positive is to be nearer.", above=0.0)
    },
}
FORMATS: dict[str, Fields] = {
    "pairs": {
        "data.anchor_field": Field("anchor", "Column with what is looked for, such as a question."),
        "data.positive_field": Field("positive", "Column with what is to be found."),
        "data.negative_fields": Field(
            (), "Columns with texts that are near and wrong, if there are any.", items=str
        ),
        "objective.loss": Field(
            "multiple_negatives",
            "Each anchor finds its positive among all texts of the batch, or is nearer to it than "
            "to its own negatives.",
            options=LOSSES,
        ),
        "evaluation.baselines": Field(True, "Also search by TF-IDF."),
        **metric_field(RETRIEVAL_METRICS, "cosine_ndcg@10"),
    },
    "scores": {
        "data.anchor_field": Field("sentence1", "Column with a text."),
        "data.positive_field": Field("sentence2", "Column with another."),
        "data.score_field": Field("score", "Column with a number: how alike they are."),
        **SCALE,
        **metric_field(SCORE_METRICS, "spearman_cosine"),
    },
}


class Embedding(Objective):
    """Makes vectors of texts, near each other where they belong together; see `Objective`."""

    metrics: ClassVar = {**RETRIEVAL_METRICS, **SCORE_METRICS}
    rows_meet: ClassVar = True
    keeps_features = False
    fields: ClassVar[Fields] = {
        "data.format": Field(
            "pairs", "What a record holds: texts that belong together, or scores.", options=FORMATS
        ),
        "data.max_length": Field(128, "Most tokens of a text; longer ones are cut.", minimum=3),
        "model.pooling": Field(
            "mean",
            "Tokens to text: mean of real tokens, first or last token.",
            choices=("mean", "first", "last"),
        ),
        "objective.matryoshka_dims": Field(
            (),
            "Learn the first so many numbers of each vector as well, such as (64, 384).",
            items=int,
        ),
        "objective.mini_batch_size": Field(
            None,
            "Rows whose activations are held at once; the batch, and so the loss and its gradient, "
            "stay whole (GradCache). None: all.",
            optional=int,
            minimum=1,
        ),
        **PROBE_FIELDS,
    }

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        # Split -> its rows as they were read, and their texts.
        self._groups: dict[str, TextGroups] = {}
        self._texts: dict[str, list[Any]] = {}

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """A batch in which nothing is compared."""
        if config.data.batch_size < 2:
            return "config.data.batch_size = 1: texts are compared with others of the batch."
        negatives = config.data.get("negative_fields", ())
        if config.objective.get("loss") == "triplet" and not negatives:
            return (
                "config.objective.loss = 'triplet' needs negatives: name their columns in "
                "config.data.negative_fields."
            )
        rows, part = config.data.batch_size, config.objective.mini_batch_size
        if part is not None and rows % part:
            return (
                f"config.objective.mini_batch_size = {part} does not divide config.data.batch_size "
                f"= {rows}; the batch is embedded in equal parts."
            )
        whole = [n for n in ("r_drop", "feature_distillation") if config.penalties.get(n, 0.0) > 0]
        if part is not None and whole:
            return (
                f"config.penalties.{whole[0]} holds the activations of the whole batch, which "
                f"config.objective.mini_batch_size = {part} is there to avoid; leave one of them "
                "out."
            )
        if any(width < 1 for width in config.objective.matryoshka_dims):
            return "config.objective.matryoshka_dims must be numbers of at least 1."
        return None

    @property
    def network_name(self) -> str:
        """What turns texts into hidden states; of T5 the encoder."""
        return backbone_name(family_of(read_config(self.folder).get("model_type", "")))

    @property
    def _names(self) -> list[str]:
        """Our names of the texts of a record."""
        count = len(self.config.data.get("negative_fields", ()))
        return ["anchor", "positive", *(f"negative_{number + 1}" for number in range(count))]

    def read_split(self, split: str) -> TextGroups:
        """Groups of texts, with scores or labels if there are some."""
        data = self.config.data
        fields = [data.anchor_field, data.positive_field, *data.get("negative_fields", ())]
        columns = dict(zip(self._names, fields, strict=True))
        more = {"score": data.get("score_field"), "label": data.get("label_field")}
        columns |= {name: column for name, column in more.items() if column is not None}
        records = self.load(split, columns)
        found: dict[str, np.ndarray] = {}
        if "score" in columns:
            found["scores"] = encode_numbers(records, "score").astype(np.float32)
            if np.ptp(found["scores"]) == 0:
                raise BadDataError(f"{records.name}: all scores are {found['scores'][0]:g}.")
        if "label" in columns:
            found["labels"] = encode_labels(records, "label", None)[0]
        self._texts[split] = [record[name] for record in records for name in self._names]
        groups = text_groups(records, self.tokenizer, self._names, data.max_length, found)
        self._groups[split] = groups
        cut = sum(text.truncated for text in groups.texts)
        told = f"; {cut:,} texts are longer than {data.max_length} tokens and truncated"
        self.notes.append(
            f"{split}: {len(records):,} groups of {len(fields)} texts, "
            f"{len(np.unique(groups.text_ids)):,} different ones{told if cut else ''}"
        )
        return groups

    def network(self, backbone: Network) -> SentenceEncoder:
        """The published network with a pooling.

        Raises:
            ValueError: dimensions that the network has not.
        """
        width = backbone.config.hidden_size
        if any(dim > width for dim in self.config.objective.matryoshka_dims):
            raise ValueError(
                f"config.objective.matryoshka_dims = {self.config.objective.matryoshka_dims}: the "
                f"network's vectors have {width} numbers."
            )
        return SentenceEncoder(backbone, self.config.model.pooling, len(self._names))

    @property
    def rows_at_once(self) -> int | None:
        """As the config says."""
        return self.config.objective.mini_batch_size

    def loss(self, forward: Forward) -> LossSums:
        """Summed over the lengths of Matryoshka, as the reference has it."""
        batch, settings = forward.batch, self.config.objective
        real = batch["weights"] > 0
        # Before anything is made of them: what a row holds that does not count may be anything.
        embeddings = jnp.where(real[:, None, None], forward.outputs, 0.0)
        count = jnp.sum(real.astype(jnp.float32))
        total, metrics = jnp.zeros(()), {}
        for vectors in contrastive.shortened(embeddings, settings.matryoshka_dims):
            if self.config.data.format == "scores":
                scores = jnp.where(real, batch["scores"], 0.0)
                total += count * contrastive.cosent(vectors, scores, real, scale=settings.scale)
                continue
            if settings.loss == "triplet":
                losses, right = contrastive.triplet(vectors, margin=settings.margin)
            else:
                losses, right = contrastive.multiple_negatives(
                    vectors,
                    batch["text_ids"],
                    real,
                    scale=settings.scale,
                    labels=batch.get("labels"),
                )
            total += jnp.sum(jnp.where(real, losses, 0.0))
            metrics["accuracy"] = (jnp.sum(jnp.where(real, right, 0.0)), count)
        return total, count, metrics

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """See `contrastive.apart`."""
        return contrastive.apart(first, second, weights)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Embeddings, [rows, texts, hidden]."""
        return network(batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """How well each anchor finds its positives among all texts of the split."""
        if self.config.data.format == "scores":
            return self._correlations(split, outputs)
        found = self._search(split, outputs.reshape(-1, outputs.shape[-1]))
        return {name: float(values.mean()) for name, values in found.items()}

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Over the anchors."""
        if self.config.data.format == "scores":
            return {}
        vectors = outputs["test"].reshape(-1, outputs["test"].shape[-1])
        found = self._search("test", vectors)
        return {name: interval_of_mean(values) for name, values in found.items()}

    def _correlations(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        vectors = np.asarray(contrastive.unit(jnp.asarray(outputs)), np.float64)
        cosines = (vectors[:, 0] * vectors[:, 1]).sum(-1)
        scores = self._groups[split].columns["scores"]
        if np.ptp(cosines) == 0:
            return dict.fromkeys(SCORE_METRICS, 0.0)
        found: dict[str, Any] = {
            "spearman_cosine": spearmanr(cosines, scores),
            "pearson_cosine": pearsonr(cosines, scores),
        }
        return {name: float(result.statistic) for name, result in found.items()}

    @property
    def has_baselines(self) -> bool:
        """Whether there is something to find."""
        return self.config.evaluation.get("baselines", False)

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Search by the words that texts share (TF-IDF, learned from the training split)."""
        vectors_of = tfidf_features([(text,) for text in self._texts["train"]])
        found = self._search("test", vectors_of([(text,) for text in self._texts["test"]]))
        return {"tfidf": {name: float(values.mean()) for name, values in found.items()}}

    def _search(self, split: str, vectors: Any) -> dict[str, np.ndarray]:
        """Metrics of each different anchor; vectors are [examples * texts, hidden]."""
        ids = self._groups[split].text_ids
        # Of equal texts the first stands for all.
        _, first = np.unique(ids, return_index=True)
        of_id = dict(zip(ids.reshape(-1)[first].tolist(), first.tolist(), strict=True))
        anchors, corpus = (np.unique(part).tolist() for part in (ids[:, 0], ids[:, 1:]))
        relevant = np.zeros((len(anchors), len(corpus)), bool)
        rows = np.searchsorted(anchors, ids[:, 0]), np.searchsorted(corpus, ids[:, 1])
        relevant[rows] = True
        if (labels := self._groups[split].columns.get("labels")) is not None:
            # Wrong texts have the label of no row.
            asked, told = (np.full(len(part), -1 - n) for n, part in enumerate((anchors, corpus)))
            asked[rows[0]], told[rows[1]] = labels, labels
            relevant |= asked[:, None] == told
        queries, texts = ([of_id[i] for i in part] for part in (anchors, corpus))
        return retrieval_scores(vectors[queries], vectors[texts], relevant)

    def retention(self) -> Retention:
        """A linear probe on unrelated text."""
        return probe_retention(self.config.retention, self.tokenizer, self.features)

    def general_text(self, records: Records) -> Examples:
        """Texts as they are, one a row."""
        return text_examples(records, self.tokenizer, (self.config.data.max_length,))

    def export(self, network: Network, folder: str | Path) -> None:
        """The network as sentence-transformers loads it."""
        hidden = network.backbone.config.hidden_size
        super().export(network, folder)
        pooling, longest = self.config.model.pooling, self.config.data.max_length
        write_embedding_modules(Path(folder), hidden, pooling, longest)

    @property
    def prediction_fields(self) -> dict[str, str]:
        """The text."""
        return {"text": self.config.data.anchor_field}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Texts as they are, one a row."""
        return self.general_text(Records("texts", [dict(record) for record in records]))

    def prediction_outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Unit vectors, [rows, hidden]."""
        return contrastive.unit(network.features(batch))

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`embedding`, of length 1."""
        return [{"embedding": [round(float(x), 6) for x in vector]} for vector in outputs]
