"""Texts to token ids: the one place that knows which special tokens a text gets for which use.

* Sorting texts, and sources of an encoder-decoder (`tokenize`): as the tokenizer does it.
* Training a language model (`tokenize_documents`): what the tokenizer begins a text with, and
  exactly one end token, whether or not the tokenizer adds one itself.
* Training a masked language model (`tokenize_pieces`): as the tokenizer does it, and a long text in
  pieces that each begin and end so.
* Words that each get a tag, and a question with its context (`data.windows`): as the tokenizer does
  it, in windows that overlap.
* A prompt that a language model goes on from (`encode_prompt`): the same beginning, no end.
* A rendered chat template (`encode_rendered`): nothing, the template writes them itself.
* Texts of which a part is learned (`encode_with_places`): as one of the two before.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import transformers

from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.tokenizer import is_of_library
from ftjax.progress import track

CHUNK = 4096

# A character is at most four bytes, each a token; more than this is no tokenisation.
TOKENS_PER_CHARACTER = 100
TOKENS_BESIDES = 1000

# (Index of a text, what is wrong with it) -> what to raise.
Refusal = Callable[[int, str], ValueError]

# Above this share of unknown tokens, a person should hear of it in a sentence.
UNKNOWN_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class TokenizedText:
    """Token ids of many texts, one behind the other.

    Attributes:
        input_ids: int32 [all tokens].
        offsets: int64 [texts + 1]; text i is input_ids[offsets[i]:offsets[i + 1]].
        token_type_ids: int32 [all tokens] for pairs of texts where the network reads them, or None.
        truncated: texts that were longer than allowed.
        unknown: tokens of the texts that stand for what the tokenizer does not know.
        text_tokens: tokens of the texts, without those that the tokenizer added.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None
    truncated: int
    unknown: int = 0
    text_tokens: int = 0

    @property
    def unknown_share(self) -> float:
        """Share of unknown tokens among all that the texts themselves have."""
        return self.unknown / max(self.text_tokens, 1)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [texts]."""
        return np.diff(self.offsets)

    def ids_of(self, index: int) -> np.ndarray:
        """The tokens of a text."""
        return self.input_ids[slice(*self.offsets[index : index + 2])]


def tokenize(
    records: Sequence[dict[str, Any]],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    text_field: str = "text",
    second_text_field: str | None = None,
) -> TokenizedText:
    """Tokenises all records, with the special tokens that the tokenizer adds.

    Args:
        records: each with the text, or two texts.
        tokenizer: a fast tokenizer.
        max_length: longer texts are cut to so many tokens, and counted; None cuts nothing.
        text_field: where the text is.
        second_text_field: where the second text of a pair is.

    Raises:
        ValueError: a record whose text is no text, or has a token without embedding.
    """
    rows, types, truncated, unknown = [], [], 0, UnknownTokens(tokenizer)
    typed = bool(second_text_field) and "token_type_ids" in tokenizer.model_input_names
    limit = max_length or math.inf
    for chunk in chunks_of(len(records)):
        texts = texts_of(records, chunk, text_field)
        pairs = texts_of(records, chunk, second_text_field) if second_text_field else None
        options = {"refusal": refusals_of(records, chunk), "return_token_type_ids": typed}
        # What is longer than the network's positions is cut below.
        encoded = encode_texts(tokenizer, texts, pairs, truncation=False, **options)
        longer = [i for i, row in enumerate(encoded["input_ids"]) if len(row) > limit]
        truncated += len(longer)
        if longer:
            some, others = [texts[i] for i in longer], pairs and [pairs[i] for i in longer]
            options["refusal"] = refusals_of(records, [chunk[i] for i in longer])
            options |= {"truncation": True, "max_length": max_length}
            for name, found in encode_texts(tokenizer, some, others, **options).items():
                for i, row in zip(longer, found, strict=True):
                    encoded[name][i] = row
        rows += [np.asarray(row, np.int32) for row in encoded["input_ids"]]
        for row, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            unknown.count(row, mask)
        if typed:
            types += [np.asarray(row, np.int32) for row in encoded["token_type_ids"]]
    return joined_tokens(rows, types if typed else None, truncated, unknown)


def tokenize_documents(
    records: Sequence[dict[str, Any]],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
) -> TokenizedText:
    """Tokenises texts that a language model learns to continue, each with exactly one end token.

    The end is predicted like any other token: a network that never sees it never stops. A text
    begins as the tokenizer begins it (with its BOS token, if it adds one), but never with two.

    Args:
        records: each with the text.
        tokenizer: a fast tokenizer.
        text_field: where the text is.

    Raises:
        ValueError: as `tokenize`, or the tokenizer has no end token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no end token.")
    rows, unknown = [], UnknownTokens(tokenizer)
    for chunk in chunks_of(len(records)):
        texts, refusal = texts_of(records, chunk, text_field), refusals_of(records, chunk)
        encoded = encode_texts(tokenizer, texts, None, refusal=refusal)
        rows_and_masks = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        for number, (row, mask) in enumerate(rows_and_masks):
            unknown.count(row, mask)
            before, content = _without_end(tokenizer, row, mask)
            while content and content[-1] == end:
                content.pop()
            row = [*before, *content, end]
            _refuse_ids_without_row(tokenizer, row, number, refusal)
            rows.append(np.asarray(row, np.int32))
    return joined_tokens(rows, None, 0, unknown)


def tokenize_pieces(
    records: Sequence[dict[str, Any]],
    tokenizer: transformers.PreTrainedTokenizerBase,
    length: int,
    *,
    text_field: str = "text",
) -> tuple[TokenizedText, np.ndarray]:
    """Tokenises whole texts; one that is too long becomes pieces, each with its special tokens.

    Args:
        records: each with the text.
        tokenizer: a fast tokenizer.
        length: most tokens of a piece.
        text_field: where the text is.

    Returns:
        The pieces, but for those of special tokens only; and int32 [all tokens], the number of the
        word that a token is part of, as the tokenizer divides texts and counted over all of them.
        It is -1 for special tokens, whether the tokenizer added them or they stand in the text.

    Raises:
        ValueError: as `tokenize`, or no room for a text between the special tokens.
    """
    special, unknown = tokenizer.all_special_ids, UnknownTokens(tokenizer)
    rows, words, count = [], [], 0
    for chunk in chunks_of(len(records)):
        texts = texts_of(records, chunk, text_field)
        encoded = encode_texts(tokenizer, texts, None, refusal=refusals_of(records, chunk))
        for number, row in enumerate(encoded["input_ids"]):
            mask = encoded["special_tokens_mask"][number]
            unknown.count(row, mask)
            if 0 not in mask:
                continue
            first, last = mask.index(0), len(mask) - mask[::-1].index(0)
            before, after = row[:first], row[last:]
            if (room := length - len(before) - len(after)) < 1:
                raise ValueError(
                    f"Rows of {length} tokens have no room for a text between the "
                    f"{len(before) + len(after)} special tokens of {tokenizer.name_or_path}."
                )
            content = np.asarray(row[first:last], np.int32)
            numbers = _word_numbers(encoded.word_ids(number)[first:last], count)
            count = max(numbers) + 1
            numbers = np.where(np.isin(content, special), -1, numbers)
            for start in range(0, len(content), room):
                inside = slice(start, start + room)
                if numbers[inside].max() >= 0:
                    rows.append(np.asarray([*before, *content[inside], *after], np.int32))
                    words += [*[-1] * len(before), *numbers[inside], *[-1] * len(after)]
    return joined_tokens(rows, None, 0, unknown), np.asarray(words, np.int32)


def encode_prompt(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that a language model goes on from: no end token after it.

    An empty text gives the BOS token, where there is one.

    Raises:
        ValueError: a token without embedding.
    """
    refusal = _refusals_of("The prompt")
    encoded = encode_texts(tokenizer, [text], None, refusal=refusal)
    row, mask = encoded["input_ids"][0], encoded["special_tokens_mask"][0]
    before, content = _without_end(tokenizer, row, mask)
    ids: list[Any] = before + content
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    _refuse_ids_without_row(tokenizer, ids, 0, refusal)
    return ids


def encode_source(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that an encoder reads, as the tokenizer begins and ends it.

    Raises:
        ValueError: a token without embedding.
    """
    refusal = _refusals_of("The source")
    return encode_texts(tokenizer, [text], None, refusal=refusal)["input_ids"][0]


def encode_rendered(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of what a chat template wrote, its special tokens included; BOS at most once.

    Raises:
        ValueError: a token without embedding.
    """
    options = {"refusal": _refusals_of("The conversation"), "add_special_tokens": False}
    ids = encode_texts(tokenizer, [text], None, **options)["input_ids"][0]
    return _one_beginning(tokenizer, [], ids)[1]


def encode_with_places(
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: list[str],
    *,
    rendered: bool,
    refusal: Refusal,
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Token ids of each text, and where each token stands in it, (start, end) in characters.

    Args:
        tokenizer: a fast tokenizer.
        texts: to encode.
        rendered: whether a chat template wrote them, or what a template writes goes before them;
            else they begin as the tokenizer begins a text. BOS at most once, no end token.
        refusal: as of a text of a record.

    Raises:
        ValueError: a token without embedding.
    """
    options = {"add_special_tokens": not rendered, "return_offsets_mapping": True}
    encoded = encode_texts(tokenizer, texts, None, refusal=refusal, **options)
    found = []
    for number, ids in enumerate(encoded["input_ids"]):
        mask, places = encoded["special_tokens_mask"][number], encoded["offset_mapping"][number]
        end = len(ids)
        if rendered:
            before, content = _one_beginning(tokenizer, [], ids)
        else:
            before, content = _without_end(tokenizer, ids, mask)
            end -= mask[::-1].index(0) if content else 0
        found.append((before + content, places[: len(before)] + places[end - len(content) : end]))
    return found


def describe_text(tokens: TokenizedText, max_length: int | None = None) -> str:
    """What a person should know of texts: how many, how many cut, how much of them is unknown."""
    parts = [f"{len(tokens.lengths):,} texts"]
    if tokens.truncated:
        cut = f" than {max_length} tokens" if max_length else ""
        parts.append(f"{tokens.truncated:,} of them longer{cut} and truncated")
    share = tokens.unknown_share
    if share > UNKNOWN_SHARE:
        parts.append(
            f"{share:.0%} of their tokens unknown to the tokenizer: it was made for another "
            "language or script, and the network sees only that something stood there"
        )
    elif tokens.unknown:
        parts.append(f"{share:.2%} of their tokens unknown")
    return ", ".join(parts)


def _word_numbers(word_ids: list[int | None], first: int) -> list[int]:
    """Numbers from `first` on for a text's words; a token that is part of none is one itself."""
    numbers: list[int] = []
    for place, word in enumerate(word_ids):
        same = place > 0 and word is not None and word == word_ids[place - 1]
        numbers.append(first + place if not numbers else numbers[-1] + (not same))
    return numbers


class UnknownTokens:
    """Counts tokens that stand for what a tokenizer does not know."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
        others = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        # GPT-2 names its end token for unknown ones, of which byte-level tokenizers have none.
        self._id: Any = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
        self.tokens = self.unknown = 0

    def count(self, ids: list[int], special_tokens_mask: list[int]) -> None:
        """Takes the tokens of a text, without those that the tokenizer added."""
        self.tokens += len(ids) - sum(special_tokens_mask)
        if self._id is not None:
            self.unknown += ids.count(self._id)


def joined_tokens(
    rows: list[np.ndarray], types: list[np.ndarray] | None, truncated: int, unknown: UnknownTokens
) -> TokenizedText:
    """Rows, and perhaps their token types, one behind the other."""
    none = np.empty(0, np.int32)
    lengths = [len(row) for row in rows]
    return TokenizedText(
        np.concatenate([*rows, none]),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        None if types is None else np.concatenate([*types, none]),
        truncated,
        unknown.unknown,
        unknown.tokens,
    )


def chunks_of(count: int) -> Iterator[range]:
    """The indices of so many texts, as many at once as a tokenizer is given."""
    starts = track(range(0, count, CHUNK), f"tokenizing {count:,} texts, {CHUNK:,} at once")
    return (range(start, min(start + CHUNK, count)) for start in starts)


def encode_texts(
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    *,
    refusal: Refusal,
    **options: Any,
) -> Any:
    """What the tokenizer gives; what it fails on is refused.

    Args:
        tokenizer: a fast tokenizer.
        texts: to be encoded.
        pairs: as many second texts, or None.
        refusal: (index of a text, what is wrong) -> what to raise.
        options: of the tokenizer.

    Raises:
        ValueError: as `refusal` makes it.
    """

    def alone(i: int) -> None:
        encode_texts(
            tokenizer,
            [texts[i]],
            [pairs[i]] if pairs else None,
            refusal=lambda _, problem: refusal(i, problem),
            **options,
        )

    def check(i: int) -> None:
        row, characters = encoded["input_ids"][i], len(texts[i]) + (len(pairs[i]) if pairs else 0)
        if len(row) > TOKENS_PER_CHARACTER * characters + TOKENS_BESIDES:
            raise refusal(
                i,
                f"the tokenizer of {tokenizer.name_or_path} makes {len(row):,} tokens of "
                f"{characters:,} characters; its tokenizer.json is damaged.",
            )
        _refuse_ids_without_row(tokenizer, row, i, refusal)

    try:
        encoded: Any = tokenizer(
            texts, pairs, verbose=False, return_special_tokens_mask=True, **options
        )
    except BaseException as error:
        if not is_of_library(error):
            raise
        if len(texts) > 1:
            of_each(texts, alone)
        raise refusal(
            0,
            f"the tokenizer of {tokenizer.name_or_path} fails on this text ({error}). Its "
            "tokenizer.json does not fit such texts.",
        ) from error
    of_each(texts, check)
    return encoded


def _without_end(
    tokenizer: transformers.PreTrainedTokenizerBase, ids: list[int], mask: list[int]
) -> tuple[list[int], list[int]]:
    """What the tokenizer put before a text, and the text itself; not what it put behind."""
    if 0 not in mask:
        return [i for i in ids[:1] if i == tokenizer.bos_token_id], []
    first = mask.index(0)
    last = len(mask) - mask[::-1].index(0)
    return _one_beginning(tokenizer, ids[:first], ids[first:last])


def _one_beginning(
    tokenizer: transformers.PreTrainedTokenizerBase, before: list[int], content: list[int]
) -> tuple[list[int], list[int]]:
    """Takes away BOS tokens of a text that already begins with one."""
    bos, start = tokenizer.bos_token_id, 0
    both = before + content
    while bos is not None and both[max(len(before) - 1, 0) + start :][:2] == [bos, bos]:
        start += 1
    return before, content[start:]


def _refuse_ids_without_row(
    tokenizer: transformers.PreTrainedTokenizerBase, ids: list[int], index: int, refusal: Refusal
) -> None:
    rows = getattr(tokenizer, "table_rows", None)
    if rows is not None and ids and max(ids) >= rows:
        largest = max(ids)
        raise refusal(
            index,
            f"the token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}) has no "
            f"embedding, the network has {rows} (vocab_size). It was added to the tokenizer of "
            f"{tokenizer.name_or_path} and the table was not resized: take the token out of the "
            "text, or train with config.model.grow_table = True, which gives it a row.",
        )


def texts_of(records: Sequence[dict[str, Any]], chunk: Sequence[int], field: str) -> list[str]:
    """The texts of some records.

    Raises:
        ValueError: something that is no text; names the records.
    """

    def text(at: int) -> str:
        found = records[chunk[at]][field]
        if isinstance(found, str):
            return found
        shown = f"{found!r:.200}{'...' if len(repr(found)) > 200 else ''}"
        hint = ""
        if isinstance(found, list) and found and isinstance(found[0], dict) and "role" in found[0]:
            hint = " It is a conversation; write each as one text, or name a column that holds one."
        raise bad_record(records, chunk[at], f"{field} is {shown}, which is not a text.{hint}")

    return of_each(chunk, text)


def refusals_of(records: Sequence[Any], chunk: Sequence[int]) -> Refusal:
    """What refuses the texts of some records."""
    return lambda index, problem: bad_record(records, chunk[index], problem)


def _refusals_of(name: str) -> Refusal:
    """What refuses a text that has a name."""
    return lambda _, problem: ValueError(f"{name}: {problem}")
