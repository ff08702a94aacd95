"""Finding texts that stand, nearly the same, on both sides of a split."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

CHUNK = 512
Row = TypeVar("Row", bound=Mapping[str, Any])


def near_duplicates(
    texts: Sequence[str], of: Sequence[str], *, threshold: float = 0.8, words: int = 5
) -> np.ndarray:
    """Which texts have a near-duplicate among others.

    Two texts are near-duplicates if the Jaccard similarity of their sets of word n-grams reaches
    the threshold; computed exactly. Case, punctuation and white space do not count; a text with
    fewer than `words` words is one n-gram.

    Args:
        texts: to be judged.
        of: to be compared with.
        threshold: in (0, 1].
        words: length of the n-grams.

    Returns:
        bool [texts].
    """
    if not len(texts) or not len(of):
        return np.zeros(len(texts), bool)
    columns: dict[tuple, int] = {}
    left, right = (_shingle_matrix(side, words, columns) for side in (texts, of))
    left.resize(len(texts), len(columns))
    right = right.T.tocsc()
    right.resize(len(columns), len(of))
    left_sizes, right_sizes = np.diff(left.indptr), np.diff(right.indptr)
    found = np.zeros(len(texts), bool)
    for start in range(0, len(texts), CHUNK):
        common = (left[start : start + CHUNK] @ right).tocoo()
        union = left_sizes[start + common.row] + right_sizes[common.col] - common.data
        found[start + common.row[common.data >= threshold * union]] = True
    return found


def without_repetitions(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Splits without the rows whose `text` has a near-duplicate in one before them.

    Args:
        splits: by name, in the order in which they keep their rows.
    """
    kept: dict[str, list[Row]] = {}
    earlier: list[str] = []
    for name, rows in splits.items():
        texts = [row["text"] for row in rows]
        repeated = near_duplicates(texts, earlier)
        kept[name] = [row for row, bad in zip(rows, repeated, strict=True) if not bad]
        earlier += texts
    return kept


def _shingle_matrix(
    texts: Sequence[str], words: int, columns: dict[tuple, int]
) -> sparse.csr_matrix:
    indices, indptr = [], [0]
    for text in texts:
        tokens = re.findall(r"\w+", text.lower())
        count = max(len(tokens) - words + 1, 1)
        shingles = {tuple(tokens[i : i + words]) for i in range(count)}
        indices.append([columns.setdefault(shingle, len(columns)) for shingle in shingles])
        indptr.append(indptr[-1] + len(shingles))
    flat = np.fromiter(itertools.chain.from_iterable(indices), np.int64, indptr[-1])
    return sparse.csr_matrix(
        (np.ones(len(flat), np.int32), flat, np.asarray(indptr)), (len(texts), len(columns))
    )
