"""SetFit: a few texts of each class, learned as pairs that are alike or not, and a solved head."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.examples import TextExamples
from ftjax.data.labels import some_names
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadDataError
from ftjax.data.text_pairs import MOST_PAIRS, SAMPLINGS, TextPairs, draw_pairs, pair_counts
from ftjax.evaluation.measurement import Measurement
from ftjax.evaluation.metrics import CLASS_METRICS
from ftjax.evaluation.solved_head import solve_head
from ftjax.fields import Field, Fields
from ftjax.losses import contrastive
from ftjax.losses.forward import Forward
from ftjax.models.heads import token_table
from ftjax.models.layers import Network
from ftjax.models.sentence_encoder import PairClassifier
from ftjax.objectives.base import LossSums
from ftjax.objectives.classification import LABEL_FIELDS, Classification
from ftjax.objectives.fields import metric_field
from ftjax.objectives.texts import TEXT_FIELDS


class SetFit(Classification):
    """Learns that texts of a class are alike, then sorts them by a solved head; see `Objective`.

    (Tunstall et al. 2022, https://arxiv.org/abs/2209.11055.) Training moves the network by pairs;
    before each validation the head is solved on the embeddings of the training texts.
    """

    keeps_features = False
    fields: ClassVar[Fields] = {
        **TEXT_FIELDS,
        **LABEL_FIELDS,
        "model.pooling": Field(
            "mean",
            "Tokens to text: mean of real tokens, first or last token.",
            choices=("mean", "first", "last"),
        ),
        "objective.sampling": Field(
            "oversampling",
            "Pairs of an epoch: 'unique' all of them; 'oversampling' as many of one class as of "
            "two, by repeating; 'undersampling' the same by leaving out.",
            choices=SAMPLINGS,
        ),
        "objective.num_iterations": Field(
            None,
            "In the place of sampling: so many pairs of one class, and of two, for each text.",
            optional=int,
            minimum=1,
            if_set={"objective.sampling": None},
        ),
        **metric_field(CLASS_METRICS, "accuracy"),
    }

    def read_labels(self, split: str, records: Records) -> np.ndarray:
        """As of `Classification`; the training split must have pairs to learn from.

        Raises:
            BadDataError: no two texts of one class, or more pairs than can be held.
        """
        labels = super().read_labels(split, records)
        if split == "train":
            self._check_pairs(np.bincount(labels, minlength=len(self.classes)))
        return labels

    def _check_pairs(self, counts: np.ndarray) -> None:
        if counts.max() < 2:
            raise BadDataError(
                f"{self.config.data.source}: each of the {len(counts)} classes has one text to "
                "learn from, and a pair of one class needs two. Add texts, or raise "
                "config.data.shots."
            )
        alone = [name for name, count in zip(self.classes, counts, strict=True) if count == 1]
        if alone:
            self.notes.append(
                f"train: {some_names(alone)} {'have' if len(alone) > 1 else 'has'} a single text, "
                "so that no pair of one class is made of it: it is learned only how it differs."
            )
        pairs = sum(pair_counts(counts.tolist(), *self._how_many))
        every = sum(pair_counts(counts.tolist(), "unique", None))
        if max(pairs, every) > MOST_PAIRS:
            raise BadDataError(
                f"{self.config.data.source}: {counts.sum():,} texts make {every:,} pairs, of which "
                f"an epoch has {pairs:,}; {MOST_PAIRS:,} are allowed. Set config.data.shots, or "
                "learn from so many texts by config.objective.name = 'classification'."
            )
        self.notes.append(f"train: {pairs:,} pairs of texts in an epoch")

    @property
    def _how_many(self) -> tuple[str | None, int | None]:
        """Sampling, or what stands in its place; see `pair_counts`."""
        return self.config.objective.get("sampling"), self.config.objective.num_iterations

    def epoch_examples(self, epoch: int) -> TextPairs:
        """Pairs, drawn for the run's seed and the epoch."""
        texts, seed = self.examples["train"], self.config.seed
        assert isinstance(texts, TextExamples)
        drawn = draw_pairs(self.labels["train"], *self._how_many, seed, epoch)
        return TextPairs(texts, *drawn)

    def network(self, backbone: Network) -> PairClassifier:
        """A linear layer over one vector per text.

        Raises:
            ValueError: a network without tokens, or whose first token sees no other; training of
                the head alone.
        """
        if self.config.tuning.method == "linear_probe":
            raise ValueError(
                "config.tuning.method = 'linear_probe' trains the head alone, and SetFit's head is "
                "solved. The frozen network with a solved head is in every result "
                "(test/frozen_linear_head/...); choose another method."
            )
        # Only to see that it has one.
        token_table(backbone)
        return self.with_new_head(PairClassifier, backbone, self.config.model.pooling, 0.0)

    def loss(self, forward: Forward) -> LossSums:
        """Squared difference of cosines from 1 for texts of one class, and from 0 for others."""
        real = forward.batch["weights"] > 0
        # Before anything is made of them: what a row holds that does not count may be anything.
        embeddings = jnp.where(real[:, None, None], forward.outputs, 0.0)
        labels = jnp.where(real, forward.batch["labels"], 0.0)
        losses = contrastive.cosine_similarity(embeddings, labels)
        total = jnp.sum(jnp.where(real, losses, 0.0))
        return total, jnp.sum(real.astype(jnp.float32)), {}

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """See `contrastive.apart`."""
        return contrastive.apart(first, second, weights)

    def solved(self) -> Measurement:
        """The head, from the training texts."""

        def head_of(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            kernel, bias = solve_head(found["train"], self.labels["train"])
            return {"classifier.kernel": kernel, "classifier.bias": bias}

        return Measurement({"train": self.examples["train"]}, self.features, head_of)

    def of_frozen_network(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """By the head that is solved here."""
        kernel, bias = solve_head(features["train"], self.labels["train"])
        return (features["test"].astype(np.float32) @ kernel + bias).argmax(-1)
