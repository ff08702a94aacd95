"""Texts with some tokens masked, for a network that guesses them (Devlin et al. 2019, 3.1).

Which tokens are masked is a function of a row's number and of what is drawn for (the run's seed and
the epoch, or nothing at all for what is scored), so that a run that is resumed sees the masks of
one that never stopped, and neither batches, devices nor padding change them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import transformers

from ftjax.data.packing import PackedText, pack
from ftjax.data.sources import Records
from ftjax.data.sources.records import bad_record
from ftjax.data.text import tokenize, tokenize_pieces

MASK_SHARE = 0.8
RANDOM_SHARE = 0.1
"""Of the tokens to guess: shown as the mask token, as another token; the rest as they are."""


@dataclasses.dataclass(frozen=True)
class MaskedExamples:
    """Packed rows with tokens to guess; see `Examples`.

    Attributes:
        packed: the rows as they came.
        units: int32 [rows, length], what is masked together: tokens of one number (all of a word,
            or one token); -1 for what is never masked.
        share: of the tokens that are to be guessed.
        mask_token_id: stands for a token to guess.
        ordinary_ids: int, tokens that may stand in the place of another.
        draw: what masks are drawn for, besides the row.
        fingerprint: SHA-256 of the records.
        text_tokens: tokens of the texts, without those that the tokenizer added.
        text_bytes: of the texts in UTF-8.
    """

    packed: PackedText
    units: np.ndarray
    share: float
    mask_token_id: int
    ordinary_ids: np.ndarray
    draw: tuple[int, ...]
    fingerprint: str
    text_tokens: int
    text_bytes: int

    @property
    def buckets(self) -> Sequence[int]:
        """All rows have one length."""
        return (self.packed.input_ids.shape[1],)

    @property
    def lengths(self) -> np.ndarray:
        """The same for all rows."""
        rows, length = self.packed.input_ids.shape
        return np.full(rows, length)

    @property
    def guesses(self) -> int:
        """Places for tokens to guess in each row."""
        return max(1, math.ceil(self.share * self.buckets[0]))

    @property
    def tokens_per_byte(self) -> float:
        """Of the texts, on average."""
        return self.text_tokens / self.text_bytes

    def token_ids(self) -> np.ndarray:
        """Of all rows, and the mask."""
        return np.append(self.packed.input_ids.ravel(), self.mask_token_id)

    def drawn_for(self, *draw: int) -> "MaskedExamples":
        """The same rows with other masks."""
        return dataclasses.replace(self, draw=draw)

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> dict[str, np.ndarray]:
        """`input_ids` (masked), `segment_ids` and `position_ids` int32 [rows, length], and guesses.

        Those are `masked_positions` and `labels`, int32 [rows, guesses], where the tokens to guess
        stand and what they are, and `weights` float32 [rows, guesses], 0 where there are fewer.
        `length` is that of the rows.
        """
        missing = rows - len(indices)

        def filled(array):
            return np.pad(array[indices], ((0, missing), (0, 0)))

        batch = {
            "input_ids": filled(self.packed.input_ids),
            "segment_ids": filled(self.packed.segment_ids),
            "position_ids": filled(self.packed.position_ids),
            "masked_positions": np.zeros((rows, self.guesses), np.int32),
            "labels": np.zeros((rows, self.guesses), np.int32),
            "weights": np.zeros((rows, self.guesses), np.float32),
            "example_ids": np.pad(indices, (0, missing), constant_values=-1).astype(np.int32),
        }
        for row, index in enumerate(indices):
            positions, shown = self._masks(int(index))
            guesses = (row, slice(len(positions)))
            batch["masked_positions"][guesses] = positions
            batch["labels"][guesses] = batch["input_ids"][row, positions]
            batch["weights"][guesses] = 1.0
            batch["input_ids"][row, positions] = shown
        return batch

    def _masks(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of a row's tokens to guess, and the tokens shown in their place."""
        entropy = np.random.SeedSequence((*self.draw, index))
        random = np.random.Generator(np.random.Philox(entropy))
        positions = chosen_positions(self.units[index], self.share, random)[: self.guesses]
        shown = self.packed.input_ids[index, positions]
        kind = random.random(len(positions))
        others = random.choice(self.ordinary_ids, len(positions))
        shown = np.where(kind < MASK_SHARE + RANDOM_SHARE, others, shown)
        return positions, np.where(kind < MASK_SHARE, self.mask_token_id, shown)


@dataclasses.dataclass(frozen=True)
class MarkedExamples(MaskedExamples):
    """Rows in which the tokens to guess are marked by mask tokens of their own."""

    @property
    def guesses(self) -> int:
        """The most mask tokens of a row."""
        return int((self.packed.input_ids == self.mask_token_id).sum(1).max())

    def _masks(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.flatnonzero(self.packed.input_ids[index] == self.mask_token_id)
        return positions, self.packed.input_ids[index, positions]


def chosen_positions(units: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Which tokens of a row are to be guessed; at least one unit.

    Units come in random order until the share is reached, and one too large for what is left is
    passed over (as in the authors' create_pretraining_data.py). The number of tokens is the share
    of the row's, rounded up or down at random, so that on average it is the share exactly.

    Args:
        units: int [length], as of `MaskedExamples`.
        share: of the tokens.
        random: where the choice comes from.

    Returns:
        Rising positions, int [tokens].
    """
    maskable = np.flatnonzero(units >= 0)
    _, unit_of, sizes = np.unique(units[maskable], return_inverse=True, return_counts=True)
    wanted = max(1, math.floor(share * len(maskable) + random.random()))
    order, chosen, left = random.permutation(len(sizes)), [], wanted
    for unit in order:
        if sizes[unit] <= left:
            chosen.append(unit)
            left -= sizes[unit]
        if left == 0:
            break
    if not chosen:
        # Nothing but words longer than that.
        chosen.append(order[0])
    return maskable[np.isin(unit_of, chosen)]


def masked_examples(
    records: Records,
    tokenizer: transformers.PreTrainedTokenizerBase,
    length: int,
    *,
    share: float,
    whole_words: bool,
) -> MaskedExamples:
    """Records' `text` in packed rows of one length, masked as what is scored.

    Args:
        records: the texts; empty ones are left out.
        tokenizer: the checkpoint's.
        length: tokens per row; a longer text becomes several pieces.
        share: of the tokens that are to be guessed.
        whole_words: whether all tokens of a word are masked or none.

    Raises:
        ValueError: a record whose text is no text, no record with anything to guess, a tokenizer
            without a mask token, or (for whole words) one that does not divide texts into words.
    """
    if (mask := cast(int | None, tokenizer.mask_token_id)) is None:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no mask token, so the network was not "
            "made to guess masked ones. Choose an encoder such as BERT, or objective 'causal_lm'."
        )
    if whole_words and len(set(tokenizer(["one two"]).word_ids(0)) - {None}) < 2:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer does not divide texts into words; set "
            "config.objective.whole_word_mask = False."
        )
    tokens, words = tokenize_pieces(records, tokenizer, length)
    if not (words >= 0).any():
        raise ValueError(f"{records.name}: no text has a token to guess; all are empty.")
    # Packed once, as places in what is packed, for everything that there is of a token.
    places = np.arange(1, len(words) + 1, dtype=np.int32)
    packed = pack(dataclasses.replace(tokens, input_ids=places), length)
    ids = np.append(cast(int, tokenizer.pad_token_id), tokens.input_ids).astype(np.int32)
    units = words if whole_words else np.where(words >= 0, places, -1)
    return MaskedExamples(
        dataclasses.replace(packed, input_ids=ids[packed.input_ids]),
        np.append(np.int32(-1), units)[packed.input_ids],
        share,
        mask,
        _ordinary_ids(tokenizer),
        (),
        records.fingerprint,
        tokens.text_tokens,
        sum(len(record["text"].encode()) for record in records),
    )


def texts_with_masks(
    records: Records, tokenizer: transformers.PreTrainedTokenizerBase, longest: int
) -> MarkedExamples:
    """Records' `text`, one per row, in which mask tokens mark what is to be guessed.

    Args:
        records: the texts.
        tokenizer: the checkpoint's.
        longest: most tokens of a text.

    Raises:
        ValueError: a text without a mask token, or longer; names the record.
    """
    tokens = tokenize(records, tokenizer, max_length=None)
    rows = np.split(tokens.input_ids, tokens.offsets[1:-1])
    for number, row in enumerate(rows):
        if tokenizer.mask_token_id not in row:
            raise bad_record(
                records,
                number,
                f"there is nothing to guess; write {tokenizer.mask_token} in the place of a word.",
            )
        if len(row) > longest:
            raise bad_record(
                records,
                number,
                f"{len(row)} tokens, and the run reads {longest} (config.data.max_length); shorten "
                "it.",
            )
    packed = PackedText(*(np.zeros((len(rows), longest), np.int32) for _ in range(3)))
    for number, row in enumerate(rows):
        packed.input_ids[number, : len(row)] = row
        packed.segment_ids[number, : len(row)] = 1
        packed.position_ids[number, : len(row)] = np.arange(len(row))
    return MarkedExamples(
        packed,
        np.full_like(packed.input_ids, -1),
        share=1.0,
        mask_token_id=cast(int, tokenizer.mask_token_id),
        ordinary_ids=np.empty(0, np.int32),
        draw=(),
        fingerprint=records.fingerprint,
        text_tokens=tokens.text_tokens,
        text_bytes=1,
    )


def _ordinary_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> np.ndarray:
    """All tokens of texts: no special one, and none without an embedding."""
    ids = np.setdiff1d(list(tokenizer.get_vocab().values()), tokenizer.all_special_ids)
    return ids if tokenizer.table_rows is None else ids[ids < tokenizer.table_rows]
