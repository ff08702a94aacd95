"""Rows of what somebody liked, as one text, and what they liked next, each a text of its own."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import transformers

from ftjax.data.examples import Batch, TextExamples
from ftjax.data.text import TokenizedText, tokenize
from ftjax.data.text_groups import rows_of_texts

SEPARATOR = "; "
NOTHING = -1
"""In the place of an item's number where there is none."""


@dataclasses.dataclass(frozen=True)
class HistoryRows:
    """Histories with what came next, without seeing each other; see `Examples`.

    Attributes:
        histories: one text of each row.
        items: one text of each item of the catalogue.
        known: int32 [rows, liked], items of each history.
        targets: int32 [rows, texts], items that came next.
        buckets: rising lengths in tokens, of all texts of a row together.
        pad_token_id: fills `input_ids` behind the last.
        fingerprint: SHA-256 of catalogue and rows.
    """

    histories: TokenizedText
    items: TokenizedText
    known: np.ndarray
    targets: np.ndarray
    buckets: Sequence[int]
    pad_token_id: int
    fingerprint: str

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        of_items = np.append(self.items.lengths, 0)
        return self.histories.lengths + of_items[self.targets].sum(1)

    @functools.cached_property
    def log_shares(self) -> np.ndarray:
        """Of each item, the logarithm of its share of all that came next, float32 [items]."""
        counts = np.bincount(
            self.targets[self.targets != NOTHING], minlength=len(self.items.lengths)
        )
        # What never came next is in no batch.
        return np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32)

    def token_ids(self) -> np.ndarray:
        """Of all texts."""
        return np.concatenate([self.histories.input_ids, self.items.input_ids])

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`input_ids`, `segment_ids`, `position_ids` int32 [rows, length], the history segment 1.

        Beside them `known_ids` int32 [rows, liked], `target_ids` int32 [rows, texts], -1 for none,
        with their `log_shares` float32, and `weights` float32 [rows].
        """
        of_rows = [list(self._texts(index)) for index in indices]
        batch = rows_of_texts(of_rows, rows, length, self.pad_token_id)
        batch["example_ids"] = np.full(rows, -1, np.int32)
        batch["example_ids"][: len(indices)] = indices
        for name, values in {"known_ids": self.known, "target_ids": self.targets}.items():
            batch[name] = np.full((rows, values.shape[1]), NOTHING, np.int32)
            batch[name][: len(indices)] = values[indices]
        batch["log_shares"] = self.log_shares[batch["target_ids"]]
        return batch

    def _texts(self, index: int) -> Iterator[np.ndarray]:
        yield self.histories.ids_of(index)
        for item in self.targets[index]:
            if item != NOTHING:
                yield self.items.ids_of(item)


def rows_of_user(
    liked: np.ndarray, most: int, targets: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What was liked by then, the newest last, and what came next, so many at a time.

    Args:
        liked: int [likes], items in order.
        most: how many of a history are kept, the newest.
        targets: how many come next at most.
    """
    for start in range(1, len(liked), targets):
        yield liked[max(start - most, 0) : start], liked[start : start + targets]


def history_rows(
    users: Sequence[np.ndarray],
    texts: Sequence[str],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    most: int,
    targets: int,
    max_length: int,
    item_length: int,
    fingerprint: str,
) -> HistoryRows:
    """Rows to learn from.

    Args:
        users: of each int [likes], items in the order in which they were liked.
        texts: of each item.
        tokenizer: of the network.
        most: items of a history at most.
        targets: of a row at most.
        max_length: most tokens of a history.
        item_length: most tokens of an item.
        fingerprint: SHA-256 of the catalogue.
    """
    rows = [row for liked in users for row in rows_of_user(liked, most, targets)]
    known, following = ([row[side] for row in rows] for side in range(2))
    told = [{"text": history_text([texts[int(i)] for i in liked])} for liked in known]
    items = [{"text": text} for text in texts]
    longest = max_length + targets * item_length
    return HistoryRows(
        histories=tokenize(told, tokenizer, max_length=max_length),
        items=tokenize(items, tokenizer, max_length=item_length),
        known=_filled(known, most),
        targets=_filled(following, targets),
        buckets=sorted({max(-(-longest * part // 4), 3) for part in (1, 2, 3, 4)}),
        pad_token_id=_padding(tokenizer),
        fingerprint=_digest(fingerprint, known, following),
    )


def history_texts(
    users: Sequence[np.ndarray],
    texts: Sequence[str],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    most: int,
    max_length: int,
    fingerprint: str,
) -> TextExamples:
    """What each user liked, one text a row; arguments as of `history_rows`."""
    told = [history_text([texts[int(i)] for i in liked[-most:]]) for liked in users]
    return texts_alone(told, tokenizer, max_length, _digest(fingerprint, users, []))


def texts_alone(
    texts: Sequence[str],
    tokenizer: transformers.PreTrainedTokenizerBase,
    max_length: int,
    fingerprint: str,
) -> TextExamples:
    """Texts one a row."""
    tokens = tokenize([{"text": text} for text in texts], tokenizer, max_length=max_length)
    buckets = sorted({max(-(-max_length // part), 3) for part in (4, 2, 1)})
    return TextExamples(tokens, buckets, _padding(tokenizer), fingerprint)


def history_text(liked: Sequence[str]) -> str:
    """What a network reads of somebody: the newest first, so that the oldest is cut."""
    return SEPARATOR.join(reversed(liked))


def _padding(tokenizer: transformers.PreTrainedTokenizerBase) -> Any:
    return tokenizer.pad_token_id


def _filled(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    filled = np.full((len(rows), width), NOTHING, np.int32)
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = values
    return filled


def _digest(fingerprint: str, *columns: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for column in columns:
        for values in column:
            digest.update(np.asarray(values, np.int64).tobytes() + b"\n")
    return digest.hexdigest()
