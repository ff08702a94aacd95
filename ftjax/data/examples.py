"""Examples of all kinds: how many there are, how long, and how some of them make a batch.

Order is an index function of (seed, epoch) (see `batching`), so a run that is resumed makes the
same batches as one that never stopped, without reading what came before.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import transformers

from ftjax.data.batching import BatchPlan, plan_batches
from ftjax.data.packing import PackedText, pack
from ftjax.data.sources import Records
from ftjax.data.text import TokenizedText, tokenize, tokenize_documents

Batch = dict[str, np.ndarray]
READ_BY_NETWORK = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")


class Examples(Protocol):
    """What training and measuring need to know of examples."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the records they were made of."""
        ...

    @property
    def buckets(self) -> Sequence[int]:
        """Rising lengths that a batch may have."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int [examples]."""
        ...

    def token_ids(self) -> np.ndarray:
        """Ids of the tokens that the network reads, int, with repetitions."""
        ...

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """Examples as arrays of static shape.

        Args:
            indices: int [up to rows], which examples.
            rows: of the batch; what is missing has weight 0.
            length: tokens per row; longer texts are cut.

        Returns:
            Arrays [rows, ...] with `weights` float32 [rows] or [rows, length], and `example_ids`
            int32 [rows], -1 in rows that only fill up.
        """
        ...


def plan(
    examples: Examples, batch_size: int, *, seed: int = 0, epoch: int | None = None
) -> list[BatchPlan]:
    """Which examples go together: shuffled for an epoch, or once through in order for None."""
    return plan_batches(
        examples.lengths,
        batch_size=batch_size,
        buckets=examples.buckets,
        seed=seed,
        epoch=epoch or 0,
        shuffle=epoch is not None,
    )


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """Texts, or pairs of texts, one per row; see `Examples`.

    Attributes:
        tokens: ragged token ids.
        buckets: rising lengths in tokens.
        pad_token_id: fills `input_ids` behind each text.
        fingerprint: SHA-256 of the records.
        columns: what else a batch holds of each example, [examples, ...], such as `labels`.
    """

    tokens: TokenizedText
    buckets: Sequence[int]
    pad_token_id: int
    fingerprint: str
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return self.tokens.lengths

    def token_ids(self) -> np.ndarray:
        """Of all texts."""
        return self.tokens.input_ids

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`input_ids`, `attention_mask` (and `token_type_ids`) int32 [rows, length]; columns."""
        tokens = self.tokens
        batch = {
            "input_ids": np.full((rows, length), self.pad_token_id, np.int32),
            "attention_mask": np.zeros((rows, length), np.int32),
            "weights": np.zeros(rows, np.float32),
            "example_ids": np.full(rows, -1, np.int32),
        }
        if tokens.token_type_ids is not None:
            batch["token_type_ids"] = np.zeros((rows, length), np.int32)
        for row, index in enumerate(indices):
            start, end = tokens.offsets[index : index + 2]
            span = slice(start, min(end, start + length))
            size = span.stop - span.start
            batch["input_ids"][row, :size] = tokens.input_ids[span]
            batch["attention_mask"][row, :size] = 1
            if tokens.token_type_ids is not None:
                batch["token_type_ids"][row, :size] = tokens.token_type_ids[span]
        # A row without any token, missing or of an empty text, would have nothing to attend to.
        batch["attention_mask"][:, 0] = 1
        batch["weights"][: len(indices)] = 1.0
        batch["example_ids"][: len(indices)] = indices
        return batch | _columns(self.columns, indices, rows)


def text_examples(
    records: Records,
    tokenizer: transformers.PreTrainedTokenizerBase,
    buckets: Sequence[int],
    *,
    second_text_field: str | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> TextExamples:
    """Records' `text` (and a second one, for pairs), cut to the largest bucket.

    Raises:
        ValueError: a record whose text is no text.
    """
    tokens = tokenize(
        records, tokenizer, max_length=buckets[-1], second_text_field=second_text_field
    )
    padding: Any = tokenizer.pad_token_id
    return TextExamples(tokens, buckets, padding, records.fingerprint, dict(columns or {}))


@dataclasses.dataclass(frozen=True)
class PackedExamples:
    """Packed rows for next-token prediction; see `Examples`.

    Attributes:
        packed: the rows.
        fingerprint: SHA-256 of the records.
    """

    packed: PackedText
    fingerprint: str

    @property
    def buckets(self) -> Sequence[int]:
        """All rows have one length."""
        return (self.packed.input_ids.shape[1],)

    @property
    def lengths(self) -> np.ndarray:
        """The same for all rows."""
        rows, length = self.packed.input_ids.shape
        return np.full(rows, length)

    def token_ids(self) -> np.ndarray:
        """Of all rows."""
        return self.packed.input_ids.ravel()

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`input_ids`, `segment_ids`, `position_ids`, `labels` int32, `weights` [rows, length].

        `labels` are the tokens that follow within the segment; `length` is that of the rows.
        """
        missing = rows - len(indices)

        def filled(array):
            return np.pad(array[indices], ((0, missing), (0, 0)))

        ids, segments = filled(self.packed.input_ids), filled(self.packed.segment_ids)
        following = np.pad(segments[:, 1:], ((0, 0), (0, 1)))
        predicted = (segments > 0) & (segments == following)
        return {
            "input_ids": ids,
            "segment_ids": segments,
            "position_ids": filled(self.packed.position_ids),
            "labels": np.where(predicted, np.pad(ids[:, 1:], ((0, 0), (0, 1))), 0).astype(np.int32),
            "weights": predicted.astype(np.float32),
            "example_ids": np.pad(indices, (0, missing), constant_values=-1).astype(np.int32),
        }


def packed_examples(
    records: Records, tokenizer: transformers.PreTrainedTokenizerBase, length: int
) -> PackedExamples:
    """Records' `text` in rows of one length.

    Raises:
        ValueError: a record whose text is no text, or a tokenizer without an end token.
    """
    tokens = tokenize_documents(records, tokenizer)
    return PackedExamples(pack(tokens, length), records.fingerprint)


@dataclasses.dataclass(frozen=True)
class ExamplesAround:
    """What examples that are made of others have of them, their order included; see `Examples`.

    Attributes:
        examples: the others.
    """

    examples: Any

    @property
    def fingerprint(self) -> str:
        """Of the others."""
        return self.examples.fingerprint

    @property
    def buckets(self) -> Sequence[int]:
        """Of the others."""
        return self.examples.buckets

    @property
    def lengths(self) -> np.ndarray:
        """Of the others."""
        return self.examples.lengths

    def token_ids(self) -> np.ndarray:
        """Of the others."""
        return self.examples.token_ids()


@dataclasses.dataclass(frozen=True)
class FeatureExamples(ExamplesAround):
    """Examples with a frozen network's features in the place of their tokens; see `Examples`.

    Attributes:
        features: float32 [examples, hidden].
    """

    features: np.ndarray

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`features` float32 [rows, hidden], and what the network does not read."""
        batch = self.examples.batch(indices, rows=rows, length=length)
        kept = {name: array for name, array in batch.items() if name not in READ_BY_NETWORK}
        # Rows that only fill up have id -1; their weight is 0, whatever their features.
        return kept | {"features": self.features[batch["example_ids"]]}


@dataclasses.dataclass(frozen=True)
class SomeExamples(ExamplesAround):
    """Some of other examples; see `Examples`.

    Attributes:
        rows: int [examples], which of them.
    """

    rows: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Of those that were chosen."""
        return self.examples.lengths[self.rows]

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """As of all, with the ids that the chosen ones have among themselves."""
        batch = self.examples.batch(self.rows[indices], rows=rows, length=length)
        batch["example_ids"][: len(indices)] = indices
        return batch


@dataclasses.dataclass(frozen=True)
class WithTokenColumns(ExamplesAround):
    """Other examples with more to know of each token of a row; see `Examples`.

    Attributes:
        columns: name -> [examples, longest row, ...].
    """

    columns: Mapping[str, np.ndarray]

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """As of the others, with the columns [rows, length, ...]; what only fills up has any."""
        batch = self.examples.batch(indices, rows=rows, length=length)
        ids = batch["example_ids"]
        return batch | {name: values[ids, :length] for name, values in self.columns.items()}


def _columns(columns: Mapping[str, np.ndarray], indices: np.ndarray, rows: int) -> Batch:
    filled = {}
    for name, values in columns.items():
        filled[name] = np.zeros((rows, *values.shape[1:]), values.dtype)
        filled[name][: len(indices)] = values[indices]
    return filled
