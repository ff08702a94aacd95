"""Texts to token ids: the one place that knows which special tokens a text gets for which use.

* Sorting texts, and sources of an encoder-decoder (`tokenize`): as the tokenizer does it.
* Training a language model (`tokenize_documents`): what the tokenizer begins a text with, and
  exactly one end token, whether or not the tokenizer adds one itself.
* A prompt that a language model goes on from (`encode_prompt`): the same beginning, no end.
* A rendered chat template (`encode_rendered`): nothing, the template writes them itself.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from ftjax.data.tokenizer_file import check_tokenizer_file
from ftjax.files import read_json

CHUNK = 4096

# A character is at most four bytes, each a token; more than this is no tokenisation.
TOKENS_PER_CHARACTER = 100
TOKENS_BESIDES = 1000

# Ids of tokens may have gaps, but a table of rows that no token has is a mistake.
ROWS_PER_TOKEN = 4

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
        unknown_share: those among all tokens that the texts themselves have.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None
    truncated: int
    unknown: int = 0
    unknown_share: float = 0.0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [texts]."""
        return np.diff(self.offsets)


def load_tokenizer(
    folder: str | Path, *, grow_table: bool = False
) -> transformers.PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer; no code of the checkpoint is run.

    It remembers as `table_rows` how many tokens the network has embeddings for (None where
    config.json does not say), so that a text with any other token is refused.

    Args:
        folder: the checkpoint's.
        grow_table: whether the network's table grows to `required_rows`.

    Raises:
        ValueError: the folder has none that works, it has no token to pad with, or it knows words
            that the network has no embedding for.
    """
    check_tokenizer_file(Path(folder))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, use_fast=True, local_files_only=True
        )
    except BaseException as error:
        if not _is_of_library(error):
            raise
        raise ValueError(
            f"{folder} has no tokenizer that can be loaded ({error}). It needs tokenizer.json or "
            "the files of a slow tokenizer beside tokenizer_config.json."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # What transformers makes of a config.json that no tokenizer file lies beside.
        raise ValueError(
            f"The tokenizer of {folder} knows no words, only special tokens. Copy tokenizer.json "
            "(or vocab.txt, or the tokenizer's .model file) of the checkpoint into the folder."
        )
    rows = _rows_of_config(Path(folder))
    if rows is not None and grow_table:
        rows = max(rows, required_rows(tokenizer))
    tokenizer.table_rows = rows
    _refuse_words_without_embedding(tokenizer)
    _choose_padding(tokenizer)
    return tokenizer


def required_rows(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """Rows that a table of embeddings needs to have one for every token.

    Raises:
        ValueError: an id so large that most rows would belong to no token.
    """
    ids = tokenizer.get_vocab()
    token = max(ids, key=ids.get)
    if ids[token] >= ROWS_PER_TOKEN * len(ids) + TOKENS_BESIDES:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has {len(ids)} tokens, but {token!r} has "
            f"the id {ids[token]}: most rows of such a table would belong to no token."
        )
    return ids[token] + 1


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
    rows, types, truncated, unknown = [], [], 0, _Unknown(tokenizer)
    typed = bool(second_text_field) and "token_type_ids" in tokenizer.model_input_names
    limit = max_length or math.inf
    for chunk in _chunks(len(records)):
        texts = [_text(records, i, text_field) for i in chunk]
        pairs = [_text(records, i, second_text_field) for i in chunk] if second_text_field else None
        where = _places(records, chunk.start)
        options = {"where": where, "return_token_type_ids": typed}
        # What is longer than the network's positions is cut below.
        encoded = _encode(tokenizer, texts, pairs, truncation=False, **options)
        too_long = sum(len(row) > limit for row in encoded["input_ids"])
        truncated += too_long
        if too_long:
            options |= {"truncation": True, "max_length": max_length}
            encoded = _encode(tokenizer, texts, pairs, **options)
        rows += [np.asarray(row, np.int32) for row in encoded["input_ids"]]
        for row, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            unknown.count(row, mask)
        if typed:
            types += [np.asarray(row, np.int32) for row in encoded["token_type_ids"]]
    return _joined(rows, types if typed else None, truncated, unknown)


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
    rows, unknown = [], _Unknown(tokenizer)
    for chunk in _chunks(len(records)):
        texts = [_text(records, i, text_field) for i in chunk]
        where = _places(records, chunk.start)
        encoded = _encode(tokenizer, texts, None, where=where)
        rows_and_masks = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        for number, (row, mask) in enumerate(rows_and_masks):
            unknown.count(row, mask)
            before, content = _without_end(tokenizer, row, mask)
            while content and content[-1] == end:
                content.pop()
            row = [*before, *content, end]
            _refuse_ids_without_row(tokenizer, row, where(number))
            rows.append(np.asarray(row, np.int32))
    return _joined(rows, None, 0, unknown)


def encode_prompt(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that a language model goes on from: no end token after it.

    An empty text gives the BOS token, where there is one.

    Raises:
        ValueError: a token without embedding.
    """
    encoded = _encode(tokenizer, [text], None, where=lambda _: "The prompt")
    row, mask = encoded["input_ids"][0], encoded["special_tokens_mask"][0]
    before, content = _without_end(tokenizer, row, mask)
    ids = before + content
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    _refuse_ids_without_row(tokenizer, ids, "The prompt")
    return ids


def encode_source(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that an encoder reads, as the tokenizer begins and ends it.

    Raises:
        ValueError: a token without embedding.
    """
    return _encode(tokenizer, [text], None, where=lambda _: "The source")["input_ids"][0]


def encode_rendered(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of what a chat template wrote, its special tokens included; BOS at most once.

    Raises:
        ValueError: a token without embedding.
    """
    options = {"where": lambda _: "The conversation", "add_special_tokens": False}
    ids = _encode(tokenizer, [text], None, **options)["input_ids"][0]
    return _one_beginning(tokenizer, [], ids)[1]


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


class _Unknown:
    """Counts tokens that stand for what a tokenizer does not know."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
        others = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        # GPT-2 names its end token for unknown ones, of which byte-level tokenizers have none.
        self._id = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
        self.tokens = self.unknown = 0

    def count(self, ids: list[int], special_tokens_mask: list[int]) -> None:
        """Takes the tokens of a text, without those that the tokenizer added."""
        self.tokens += len(ids) - sum(special_tokens_mask)
        if self._id is not None:
            self.unknown += ids.count(self._id)


def _joined(
    rows: list[np.ndarray], types: list[np.ndarray] | None, truncated: int, unknown: _Unknown
) -> TokenizedText:
    none = np.empty(0, np.int32)
    lengths = [len(row) for row in rows]
    return TokenizedText(
        np.concatenate([*rows, none]),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        None if types is None else np.concatenate([*types, none]),
        truncated,
        unknown.unknown,
        unknown.unknown / max(unknown.tokens, 1),
    )


def _chunks(count: int) -> Iterator[range]:
    return (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def _encode(
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    *,
    where: Callable[[int], str],
    **options: Any,
) -> dict[str, list[list[int]]]:
    """The tokenizer called, with its failures as sentences that say `where` the text stands."""
    try:
        encoded = tokenizer(texts, pairs, verbose=False, return_special_tokens_mask=True, **options)
    except BaseException as error:
        if not _is_of_library(error):
            raise
        if len(texts) > 1:
            for i, text in enumerate(texts):
                pair = [pairs[i]] if pairs else None
                _encode(tokenizer, [text], pair, where=lambda _, i=i: where(i), **options)
        raise ValueError(
            f"{where(0)}: the tokenizer of {tokenizer.name_or_path} fails on this "
            f"text ({error}). Its tokenizer.json does not fit such texts."
        ) from error
    for i, row in enumerate(encoded["input_ids"]):
        characters = len(texts[i]) + (len(pairs[i]) if pairs else 0)
        if len(row) > TOKENS_PER_CHARACTER * characters + TOKENS_BESIDES:
            raise ValueError(
                f"{where(i)}: the tokenizer of {tokenizer.name_or_path} makes "
                f"{len(row):,} tokens of {characters:,} characters; its tokenizer.json is damaged."
            )
        _refuse_ids_without_row(tokenizer, row, where(i))
    return encoded


def _is_of_library(error: BaseException) -> bool:
    # A panic of the tokenizers library (a regular expression without end) is no Exception.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


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


def _rows_of_config(folder: Path) -> int | None:
    """Tokens that the network has embeddings for, as its config.json says."""
    file = folder / "config.json"
    fields = read_json(file) if file.exists() else {}
    for inner in (fields, fields.get("text_config") if isinstance(fields, dict) else None):
        rows = inner.get("vocab_size") if isinstance(inner, dict) else None
        if isinstance(rows, int):
            return rows
    return None


def _refuse_words_without_embedding(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Under jit an index beyond a table reads its last row or NaN, and nobody would notice."""
    # Special tokens may stand beyond the table (Gemma 3's for images does): texts are looked at.
    ids = tokenizer.get_vocab()
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    token = max(ids.keys() - special, key=ids.get)
    index, rows = ids[token], tokenizer.table_rows
    if rows is not None and index >= rows:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} knows {index + 1} tokens, but the network "
            f"has embeddings for {rows} (vocab_size): {token!r} has none. The tokenizer belongs to "
            "another network, or tokens were added to it and the embeddings were not resized."
        )


def _refuse_ids_without_row(
    tokenizer: transformers.PreTrainedTokenizerBase, ids: list[int], where: str
) -> None:
    rows = getattr(tokenizer, "table_rows", None)
    if rows is not None and ids and max(ids) >= rows:
        index = max(ids)
        raise ValueError(
            f"{where}: the token {tokenizer.convert_ids_to_tokens(index)!r} (id {index}) has no "
            f"embedding, the network has {rows} (vocab_size). It was added to the tokenizer of "
            f"{tokenizer.name_or_path} and the table was not resized: let it grow "
            "(config.model.grow_table = True), or take the token out of the text."
        )


def _choose_padding(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Lets rows be padded with a token that has an embedding.

    Padding is masked everywhere; reusing EOS for it would teach a network never to stop only if
    labels were masked by id, which nothing in ftjax does.
    """
    rows = tokenizer.table_rows
    for name in ("pad_token", "unk_token", "eos_token", "bos_token"):
        index = getattr(tokenizer, f"{name}_id")
        if index is not None and (rows is None or index < rows):
            if name != "pad_token":
                tokenizer.pad_token = getattr(tokenizer, name)
            return
    raise ValueError(
        f"The tokenizer of {tokenizer.name_or_path} has no pad, unknown or end token with an "
        "embedding to pad with."
    )


def _text(records: Sequence[dict[str, Any]], index: int, field: str) -> str:
    text = records[index][field]
    if not isinstance(text, str):
        raise ValueError(f"{_where(records, index)}: {field} is {text!r}, which is not a text.")
    return text


def _where(records: Sequence[dict[str, Any]], index: int) -> str:
    return f"{getattr(records, 'name', 'records')}, record {index + 1}"


def _places(records: Sequence[dict[str, Any]], start: int) -> Callable[[int], str]:
    return lambda index: _where(records, start + index)
