"""Texts that are longer than a network reads, as windows that overlap."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import transformers

from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.text import (
    TokenizedText,
    UnknownTokens,
    chunks_of,
    encode_texts,
    joined_tokens,
    refusals_of,
    texts_of,
)


def tokenize_words(
    sentences: Sequence[Sequence[str]],
    records: Sequence[Any],
    tokenizer: transformers.PreTrainedTokenizerBase,
    length: int,
    *,
    stride: int,
) -> tuple[TokenizedText, np.ndarray, np.ndarray]:
    """Tokenises sentences of words, read with a space between them; long ones become windows.

    Args:
        sentences: the words of each.
        records: that they are of, for messages.
        tokenizer: a fast tokenizer.
        length: most tokens of a window, special tokens included.
        stride: tokens that a window shares with the one before it.

    Returns:
        The windows; int32 [all tokens], the number in its sentence of the word that begins at a
        token, -1 where none does; and int64 [windows], the sentence that each is of.

    Raises:
        ValueError: as `tokenize`, or a stride for which windows have no room.
    """
    unknown, rows, numbers, sentence_of = UnknownTokens(tokenizer), [], [], []
    for chunk in chunks_of(len(sentences)):
        texts = [" ".join(sentences[i]) for i in chunk]
        refusal = refusals_of(records, chunk)
        encoded = encode_texts(tokenizer, texts, None, refusal=refusal, return_offsets_mapping=True)
        for index, row in enumerate(encoded["input_ids"]):
            mask, words = encoded["special_tokens_mask"][index], sentences[chunk.start + index]
            unknown.count(row, mask)
            first = mask.index(0) if 0 in mask else len(mask)
            last = len(mask) - mask[::-1].index(0) if 0 in mask else first
            room = length - first - (len(row) - last)
            if room <= stride:
                raise ValueError(
                    f"Windows of {length} tokens have room for {room} of a sentence; "
                    f"config.data.stride = {stride} must be below that."
                )
            begun = _beginnings(encoded["offset_mapping"][index][first:last], words)
            for content in _windows(last - first, room, stride):
                inside = row[first:last][content]
                rows.append(np.asarray([*row[:first], *inside, *row[last:]], np.int32))
                numbers += [*[-1] * first, *begun[content], *[-1] * (len(row) - last)]
                sentence_of.append(chunk.start + index)
    tokens = joined_tokens(rows, None, 0, unknown)
    return tokens, np.asarray(numbers, np.int32), np.asarray(sentence_of, np.int64)


class ContextWindows(NamedTuple):
    """Questions, each with a part of its context.

    Attributes:
        tokens: of the windows.
        question_of: int64 [windows], the question of each.
        context: int32 [windows, 2], where the context's first and last token stand in the window.
        characters: int32 [all tokens, 2], where a token of the context begins and ends in it; 0 for
            all others.
    """

    tokens: TokenizedText
    question_of: np.ndarray
    context: np.ndarray
    characters: np.ndarray


def tokenize_contexts(
    records: Sequence[dict[str, Any]],
    tokenizer: transformers.PreTrainedTokenizerBase,
    length: int,
    *,
    stride: int,
) -> ContextWindows:
    """Tokenises questions with their contexts; of a long context, windows with the whole question.

    (As transformers' run_qa, by `truncation="only_second"` and `return_overflowing_tokens`.)

    Args:
        records: each with a `question` and a `context`.
        tokenizer: a fast tokenizer.
        length: most tokens of a window, special tokens included.
        stride: tokens of the context that a window shares with the one before it.

    Raises:
        ValueError: as `tokenize`, a question that leaves no room for its context, or one of the two
            without tokens; names the records.
    """
    typed = "token_type_ids" in tokenizer.model_input_names
    unknown, rows, types = UnknownTokens(tokenizer), [], []
    characters, context, question_of = [], [], []
    for chunk in chunks_of(len(records)):
        # Some of SQuAD's questions begin with spaces.
        questions = [text.lstrip() for text in texts_of(records, chunk, "question")]
        encoded = encode_texts(
            tokenizer,
            questions,
            texts_of(records, chunk, "context"),
            refusal=refusals_of(records, chunk),
            return_offsets_mapping=True,
            return_token_type_ids=typed,
            truncation=False,
        )
        bounds = _context_bounds(encoded, records, chunk, length, stride)
        for at, (first, last) in enumerate(bounds):
            row = np.asarray(encoded["input_ids"][at], np.int32)
            unknown.count(encoded["input_ids"][at], encoded["special_tokens_mask"][at])
            offsets = np.asarray(encoded["offset_mapping"][at], np.int32)
            offsets[:first] = offsets[last:] = 0
            for content in _windows(last - first, length - len(row) + last - first, stride):
                chosen = np.r_[:first, first + np.arange(last - first)[content], last : len(row)]
                rows.append(row[chosen])
                characters.append(offsets[chosen])
                if typed:
                    types.append(np.asarray(encoded["token_type_ids"][at], np.int32)[chosen])
                context.append((first, len(chosen) - (len(row) - last) - 1))
                question_of.append(chunk.start + at)
    return ContextWindows(
        joined_tokens(rows, types if typed else None, 0, unknown),
        np.asarray(question_of, np.int64),
        np.asarray(context, np.int32),
        np.concatenate([np.zeros((0, 2), np.int32), *characters]),
    )


def _context_bounds(
    encoded: Any, records: Sequence[Any], chunk: range, length: int, stride: int
) -> list[tuple[int, int]]:
    """Where the context begins, and what is behind its end, among the tokens of each row."""

    def bounds(at: int) -> tuple[int, int]:
        parts = encoded.sequence_ids(at)
        for part, name in enumerate(("question", "context")):
            if part not in parts:
                raise bad_record(records, chunk[at], f"the tokenizer makes nothing of the {name}.")
        first, size = parts.index(1), parts.count(1)
        around = len(parts) - size
        if around >= length or (size > length - around <= stride):
            raise bad_record(
                records,
                chunk[at],
                f"the question and special tokens take {around:,} of the {length} tokens of a "
                f"window, too many to leave more than config.data.doc_stride = {stride} of them to "
                "the context. Shorten the question, raise the last of config.data.buckets or lower "
                "the stride.",
            )
        return first, first + size

    return of_each(chunk, bounds)


def _windows(size: int, room: int, stride: int) -> Iterator[slice]:
    """The parts of so many tokens for which there is room, each sharing `stride` with the next."""
    for start in range(0, max(size - stride, 1), max(room - stride, 1)):
        yield slice(start, start + room)


def _beginnings(spans: Sequence[tuple[int, int]], words: Sequence[str]) -> list[int]:
    """The number of the word that begins at a token, -1 where none does.

    Args:
        spans: of the tokens, in characters of the words with a space between them.
        words: of the sentence.
    """
    word_of = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
    begun, seen = [], -1
    for start, end in spans:
        # Some tokenizers count the space before a word to its first token.
        word = int(word_of[end - 1]) if end > start else seen
        begun.append(word if word > seen else -1)
        seen = max(seen, word)
    return begun
