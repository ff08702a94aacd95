"""Sums of two numbers, for what can be learned from being right alone."""

from collections.abc import Iterable, Mapping

import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder, split_by_hash

NUMBERS = range(10, 50)
# What a sum looks like, for networks that were not told.
SHOWN = "12 + 31 = 43\n40 + 25 = 65\n"


class TwoDigitSums(RowsBuilder):
    """All sums of two numbers from 10 to 49: in `prompt` two other sums and this one's left side.

    `answer` is its right side. A sum and the same the other way round are of one split.
    """

    VERSION = tfds.core.Version("1.0.0")
    LICENSE = "CC0-1.0"

    def features(self) -> Mapping:
        """Both as text."""
        return {"prompt": tfds.features.Text(), "answer": tfds.features.Text()}

    def splits(self) -> Mapping[str, Iterable]:
        """By hash."""
        found: dict[str, list] = {"train": [], "validation": [], "test": []}
        for first in NUMBERS:
            for second in NUMBERS:
                split = split_by_hash(f"{min(first, second)} + {max(first, second)}")
                prompt = f"{SHOWN}{first} + {second} ="
                found[split].append({"prompt": prompt, "answer": str(first + second)})
        return found
