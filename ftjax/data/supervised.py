"""Texts of which a part is learned, as tokens, and as rows of one or several of them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import transformers

from ftjax.data.examples import Batch
from ftjax.data.packing import best_fit_decreasing
from ftjax.data.text import Refusal, encode_with_places
from ftjax.data.turns import Marked
from ftjax.progress import track

CHUNK = 1024
STRATEGIES = ("bfd", "bfd_split", "wrapped")
"""How texts share rows: best fit decreasing, what is too long cut or divided; or as they come."""


@dataclasses.dataclass(frozen=True)
class SupervisedText:
    """Token ids of many texts, one behind the other, and what of them is learned.

    Attributes:
        input_ids: int32 [all tokens].
        offsets: int64 [texts + 1]; text i is input_ids[offsets[i]:offsets[i + 1]].
        supervised: bool [all tokens], whether a token is learned.
        byte_counts: int32 [all tokens], how many bytes of the text (in UTF-8) a token stands for;
            0 for special tokens.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    supervised: np.ndarray
    byte_counts: np.ndarray

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """Of each text, the share of tokens that are learned, [texts]."""
        counts = np.add.reduceat(self.supervised.astype(np.int64), self.offsets[:-1])
        return counts / np.diff(self.offsets)

    def predicted(self, starts: np.ndarray) -> np.ndarray:
        """What is learned where pieces begin at `starts`, bool [all tokens].

        The first token of a piece has nothing before it that it could be predicted from.
        """
        predicted = self.supervised.copy()
        predicted[starts] = False
        return predicted


@dataclasses.dataclass(frozen=True)
class SupervisedExamples:
    """Rows of texts of which a part is learned, for next-token prediction; see `Examples`.

    Attributes:
        text: the tokens.
        pieces: int64 [pieces, 2], start and end of what stands in rows as one.
        rows: of each row its pieces, which do not see each other.
        buckets: rising lengths in tokens.
        fingerprint: SHA-256 of the records.
    """

    text: SupervisedText
    pieces: np.ndarray
    rows: Sequence[Sequence[int]]
    buckets: Sequence[int]
    fingerprint: str

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        sizes = self.pieces[:, 1] - self.pieces[:, 0]
        return np.asarray([sizes[list(row)].sum() for row in self.rows], np.int64)

    @functools.cached_property
    def predicted_bytes(self) -> int:
        """Bytes of the text that is learned, all rows together."""
        return int(self.text.byte_counts[self._predicted].sum())

    @functools.cached_property
    def share_supervised(self) -> float:
        """Of the tokens of all rows."""
        return float(self._predicted.sum() / self.lengths.sum())

    @functools.cached_property
    def _predicted(self) -> np.ndarray:
        inside = np.zeros(len(self.text.input_ids), bool)
        for start, end in self.pieces:
            inside[start:end] = True
        return self.text.predicted(self.pieces[:, 0]) & inside

    def token_ids(self) -> np.ndarray:
        """Of all rows."""
        return np.concatenate([self.text.input_ids[start:end] for start, end in self.pieces])

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """`input_ids`, `segment_ids`, `position_ids`, `labels` int32, `weights` [rows, length].

        As of `PackedExamples`; `weights` are 0 too where the token that follows is not learned.
        """
        names = ("input_ids", "segment_ids", "position_ids", "labels")
        batch: Batch = {name: np.zeros((rows, length), np.int32) for name in names}
        batch["weights"] = np.zeros((rows, length), np.float32)
        batch["example_ids"] = np.full(rows, -1, np.int32)
        batch["example_ids"][: len(indices)] = indices
        for row, index in enumerate(indices):
            at = 0
            for segment, piece in enumerate(self.rows[index], 1):
                start, end = self.pieces[piece]
                here, before_last = slice(at, at + end - start), slice(at, at + end - start - 1)
                batch["input_ids"][row, here] = self.text.input_ids[start:end]
                batch["segment_ids"][row, here] = segment
                batch["position_ids"][row, here] = np.arange(end - start)
                batch["labels"][row, before_last] = self.text.input_ids[start + 1 : end]
                batch["weights"][row, before_last] = self.text.supervised[start + 1 : end]
                at = here.stop
        return batch


def tokenize_marked(
    texts: Sequence[Marked],
    tokenizer: transformers.PreTrainedTokenizerBase,
    refusal: Refusal,
) -> SupervisedText:
    """Token ids, and which of them are learned: those that stand wholly in a span.

    Plain texts get exactly one end token, which is learned.

    Args:
        texts: what is learned of them.
        tokenizer: a fast tokenizer.
        refusal: (index of a text, what is wrong with it) -> what to raise.

    Raises:
        ValueError: a token without embedding, or a tokenizer without an end token for plain texts.
    """
    if tokenizer.eos_token_id is None and not all(text.rendered for text in texts):
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no end token.")
    parts = []
    starts = range(0, len(texts), CHUNK)
    for first in track(starts, f"tokenizing {len(texts):,} texts, {CHUNK:,} at once"):
        chunk = texts[first : first + CHUNK]
        encoded = _encoded(
            chunk, tokenizer, lambda index, told, first=first: refusal(first + index, told)
        )
        parts += [
            _learned(marked, *found, tokenizer)
            for marked, found in zip(chunk, encoded, strict=True)
        ]
    ids, supervised, byte_counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    byte_counts[np.isin(ids, sorted(special | set(tokenizer.all_special_ids)))] = 0
    offsets = np.cumsum([0, *(len(part[0]) for part in parts)], dtype=np.int64)
    return SupervisedText(ids, offsets, supervised, byte_counts)


def fill_rows(text: SupervisedText, length: int, strategy: str | None) -> tuple[np.ndarray, list]:
    """Pieces [pieces, 2] of texts, and which of them share a row of `length` tokens.

    Args:
        text: the tokens.
        length: most tokens of a row.
        strategy: one of `STRATEGIES`, or None for one text in each row. With None and "bfd" what a
            text has beyond a row is cut, with "bfd_split" it becomes further pieces (those in which
            nothing is learned are left out), with "wrapped" rows are filled in order, and a text
            goes on in the next.
    """
    begins, ends = text.offsets[:-1], text.offsets[1:]
    if strategy == "wrapped":
        bounds = np.union1d(text.offsets, np.arange(0, text.offsets[-1], length))
        pieces = np.stack([bounds[:-1], bounds[1:]], axis=1)
        firsts = np.flatnonzero(pieces[:, 0] % length == 0)
        return pieces, np.split(np.arange(len(pieces)), firsts[1:])
    if strategy == "bfd_split":
        whole = zip(begins.tolist(), ends.tolist(), strict=True)
        starts = np.asarray([at for start, end in whole for at in range(start, end, length)])
        stops = np.append(starts[1:], ends[-1])
        learned = np.add.reduceat(text.predicted(starts).astype(np.int64), starts) > 0
        pieces = np.stack([starts, stops], axis=1)[learned]
    else:
        pieces = np.stack([begins, np.minimum(ends, begins + length)], axis=1)
    if strategy is None:
        return pieces, [[piece] for piece in range(len(pieces))]
    return pieces, best_fit_decreasing(pieces[:, 1] - pieces[:, 0], length)


Encoded = tuple[list[int], list[tuple[int, int]]]


def _encoded(
    texts: Sequence[Marked],
    tokenizer: transformers.PreTrainedTokenizerBase,
    refusal: Refusal,
) -> list[Encoded]:
    """Tokens and their places; none reaches over the beginning of what is learned."""
    found: list[Encoded] = [([], [])] * len(texts)
    for rendered in {text.rendered for text in texts}:
        chosen = [index for index, text in enumerate(texts) if text.rendered == rendered]
        encoded = encode_with_places(
            tokenizer,
            [texts[index].text for index in chosen],
            rendered=rendered,
            refusal=lambda number, told, chosen=chosen: refusal(chosen[number], told),
        )
        for index, one in zip(chosen, encoded, strict=True):
            seams = _crossed(one[1], [start for start, _ in texts[index].spans])
            found[index] = one
            if seams:
                refuse = functools.partial(_refused, refusal, index)
                found[index] = _in_parts(texts[index], seams, tokenizer, refuse)
    return found


def _crossed(places: Sequence[tuple[int, int]], seams: Sequence[int]) -> list[int]:
    """Seams with a token on both sides, or after characters that belong to the token behind."""
    ends = np.asarray([0, *(end for _, end in places)])
    before = np.searchsorted(ends, seams, side="right") - 1
    return [
        seam
        for seam, last in zip(seams, before, strict=True)
        if ends[last] < seam and last + 1 < len(ends)
    ]


def _in_parts(
    marked: Marked,
    seams: Sequence[int],
    tokenizer: transformers.PreTrainedTokenizerBase,
    refusal: Refusal,
) -> Encoded:
    """As a network reads its prompt and goes on: what stands before a seam is encoded alone."""
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for start, end in zip([0, *seams], [*seams, len(marked.text)], strict=True):
        rendered = marked.rendered or start > 0
        ((found, spans),) = encode_with_places(
            tokenizer, [marked.text[start:end]], rendered=rendered, refusal=refusal
        )
        ids += found
        places += [(start + first, start + last) for first, last in spans]
    return ids, places


def _refused(refusal: Refusal, index: int, _: int, told: str) -> ValueError:
    """Of a part of the text of an index."""
    return refusal(index, told)


def _learned(
    marked: Marked,
    ids: list[int],
    places: list[tuple[int, int]],
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of a text, whether each is learned, and its bytes."""
    bounds = np.asarray(places, np.int64).reshape(-1, 2)
    learned = np.zeros(len(ids), bool)
    for start, end in marked.spans:
        learned |= (bounds[:, 0] >= start) & (bounds[:, 1] <= end)
    # What the tokenizer puts before a text stands nowhere in it.
    learned &= bounds[:, 0] < bounds[:, 1]
    counts = _byte_counts(marked.text, bounds[:, 1])
    end: Any = tokenizer.eos_token_id
    if not marked.rendered:
        while ids and ids[-1] == end:
            ids, learned, counts = ids[:-1], learned[:-1], counts[:-1]
        ids, learned, counts = [*ids, end], np.append(learned, True), np.append(counts, 0)
    return np.asarray(ids, np.int32), learned, counts.astype(np.int32)


def _byte_counts(text: str, ends: np.ndarray) -> np.ndarray:
    """Bytes from the end of the token before to a token's own, int64 [tokens]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + sum((points >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    before = np.append(0, np.cumsum(widths))
    return np.diff(before[np.maximum.accumulate(ends)], prepend=0)
