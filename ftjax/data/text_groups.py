"""Rows of several texts that say something together: a question, its answer, others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import transformers

from ftjax.data.examples import Batch
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record
from ftjax.data.text import TokenizedText, tokenize


@dataclasses.dataclass(frozen=True)
class TextGroups:
    """Texts of a row behind each other, without seeing each other; see `Examples`.

    Attributes:
        texts: of each column its texts, as tokens.
        text_ids: int32 [examples, columns], equal for equal texts.
        buckets: rising lengths in tokens, of all texts of a row together.
        pad_token_id: fills `input_ids` behind the last.
        fingerprint: SHA-256 of the records.
        columns: what else a batch holds of each example, [examples].
    """

    texts: Sequence[TokenizedText]
    text_ids: np.ndarray
    buckets: Sequence[int]
    pad_token_id: int
    fingerprint: str
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.sum([text.lengths for text in self.texts], axis=0)

    def token_ids(self) -> np.ndarray:
        """Of all texts."""
        return np.concatenate([text.input_ids for text in self.texts])

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`input_ids`, `segment_ids`, `position_ids` int32 [rows, length]; `text_ids`; columns.

        The texts of a row are segments 1, 2, ...; `weights` are float32 [rows].
        """
        of_rows = [[text.ids_of(index) for text in self.texts] for index in indices]
        batch = rows_of_texts(of_rows, rows, length, self.pad_token_id)
        batch["example_ids"] = np.full(rows, -1, np.int32)
        batch["example_ids"][: len(indices)] = indices
        for name, values in {"text_ids": self.text_ids, **self.columns}.items():
            batch[name] = np.zeros((rows, *values.shape[1:]), values.dtype)
            batch[name][: len(indices)] = values[indices]
        return batch


def rows_of_texts(
    of_rows: Sequence[Sequence[np.ndarray]], rows: int, length: int, pad_token_id: int
) -> Batch:
    """Texts of a row behind each other.

    Args:
        of_rows: of each row that there is, the token ids of its texts.
        rows: of the batch; what is missing has weight 0.
        length: tokens per row.
        pad_token_id: fills `input_ids`.

    Returns:
        `input_ids`, `segment_ids` (1, 2, ... for texts, 0 behind them) and `position_ids` int32
        [rows, length], `weights` float32 [rows].
    """
    names = ("segment_ids", "position_ids")
    batch: Batch = {name: np.zeros((rows, length), np.int32) for name in names}
    batch["input_ids"] = np.full((rows, length), pad_token_id, np.int32)
    batch["weights"] = np.zeros(rows, np.float32)
    batch["weights"][: len(of_rows)] = 1.0
    for row, texts in enumerate(of_rows):
        at = 0
        for segment, ids in enumerate(texts, 1):
            here = slice(at, at + len(ids))
            batch["input_ids"][row, here] = ids
            batch["segment_ids"][row, here] = segment
            batch["position_ids"][row, here] = np.arange(len(ids))
            at = here.stop
    return batch


def text_groups(
    records: Records,
    tokenizer: transformers.PreTrainedTokenizerBase,
    names: Sequence[str],
    max_length: int,
    columns: Mapping[str, np.ndarray] | None = None,
) -> TextGroups:
    """Records' texts by these names, each cut to `max_length` tokens.

    Raises:
        BadRecordError: a record with a text that is none, or is empty.
    """
    for index, record in enumerate(records):
        for name in names:
            if not isinstance(record[name], str) or not record[name].strip():
                raise bad_record(
                    records, index, f"the {name} is {record[name]!r:.80}; a text is needed."
                )
    texts = [tokenize(records, tokenizer, max_length=max_length, text_field=n) for n in names]
    known: dict[str, int] = {}
    ids = [[known.setdefault(r[name].strip(), len(known)) for name in names] for r in records]
    most = max_length * len(names)
    buckets = sorted({max(-(-most // part), 3) for part in (8, 4, 2, 1)})
    pad: Any = tokenizer.pad_token_id
    return TextGroups(
        texts, np.asarray(ids, np.int32), buckets, pad, records.fingerprint, dict(columns or {})
    )
