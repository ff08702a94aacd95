"""Pairs of texts of one class, or of two, as SetFit draws them (Tunstall et al. 2022)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ftjax.data.examples import Batch, TextExamples
from ftjax.data.text_groups import rows_of_texts

SAMPLINGS = ("oversampling", "undersampling", "unique")
MOST_PAIRS = 2**22
"""Of all that there are, or of an epoch: more are no few texts, and take seconds to draw."""


@dataclasses.dataclass(frozen=True)
class TextPairs:
    """Two texts a row, behind each other, and whether they are alike; see `Examples`.

    Attributes:
        texts: that pairs are made of, one a row.
        pairs: int [pairs, 2], which of them.
        labels: float32 [pairs], 1 for alike and 0 for others.
    """

    texts: TextExamples
    pairs: np.ndarray
    labels: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Of the texts."""
        return self.texts.fingerprint

    @property
    def buckets(self) -> Sequence[int]:
        """Those of the texts, and twice as long ones."""
        alone = self.texts.buckets
        return sorted({*alone, *(2 * bucket for bucket in alone)})

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of both texts."""
        return self.texts.lengths[self.pairs].sum(1)

    def token_ids(self) -> np.ndarray:
        """Of all texts."""
        return self.texts.token_ids()

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """As of `rows_of_texts`; `labels` float32 [rows], and both `example_ids`, [rows, 2]."""
        pairs, tokens = self.pairs[indices], self.texts.tokens
        of_rows = [[tokens.ids_of(text) for text in pair] for pair in pairs]
        batch = rows_of_texts(of_rows, rows, length, self.texts.pad_token_id)
        batch["labels"] = np.zeros(rows, np.float32)
        batch["labels"][: len(indices)] = self.labels[indices]
        batch["example_ids"] = np.full((rows, 2), -1, np.int32)
        batch["example_ids"][: len(indices)] = pairs
        return batch


def pair_counts(
    classes: Sequence[int], sampling: str | None, num_iterations: int | None
) -> tuple[int, int]:
    """How many pairs of one class, and how many of two, an epoch has.

    Args:
        classes: how many texts each class has.
        sampling: "unique" has all pairs once; "oversampling" repeats those of the kind that is
            rarer, until there are as many as of the other; "undersampling" leaves out of the other.
        num_iterations: in its place, so many pairs of each kind for each text.
    """
    texts = sum(classes)
    alike = sum(count * (count - 1) // 2 for count in classes)
    others = (texts * texts - sum(count * count for count in classes)) // 2
    if num_iterations is not None:
        return num_iterations * texts, num_iterations * texts
    if sampling == "unique":
        return alike, others
    both = max(alike, others) if sampling == "oversampling" else min(alike, others)
    return both, both


def draw_pairs(
    labels: np.ndarray, sampling: str | None, num_iterations: int | None, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts of an epoch, always the same for the same seed and epoch.

    As many as `pair_counts` says, in random order, both kinds in turn: no text with itself, and no
    pair a second time before all have come once.

    Args:
        labels: int [texts], of at least two classes, one of them with two texts or more.
        sampling: as of `pair_counts`.
        num_iterations: as of `pair_counts`.
        seed: the run's.
        epoch: from 0.

    Returns:
        int [pairs, 2], and 1 (of one class) or 0 for each, float32 [pairs].
    """
    first, second = np.triu_indices(len(labels), 1)
    alike = labels[first] == labels[second]
    random = np.random.default_rng([seed, epoch])
    counts = pair_counts(np.bincount(labels).tolist(), sampling, num_iterations)
    chosen = [
        # What is drawn begins again where it ends.
        np.resize(random.permutation(np.flatnonzero(kind)), count)
        for kind, count in zip((alike, ~alike), counts, strict=True)
    ]
    # In turn, as long as there are both.
    turns = np.argsort(np.concatenate([np.arange(count) for count in counts]), kind="stable")
    rows = np.concatenate(chosen)[turns]
    return np.stack([first[rows], second[rows]], axis=1), alike[rows].astype(np.float32)
