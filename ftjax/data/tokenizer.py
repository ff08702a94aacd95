"""A checkpoint's own tokenizer, and whether it fits the network."""

from pathlib import Path
from typing import Any

import transformers

from ftjax.data.tokenizer_file import check_tokenizer_file
from ftjax.files import read_json

# Ids of tokens may have gaps, but a table of rows that no token has is a mistake.
ROWS_PER_TOKEN = 4
TOKENS_BESIDES = 1000


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
        reads = _reads_its_own_words(tokenizer)
    except BaseException as error:
        if not is_of_library(error):
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
    if not reads:
        raise ValueError(
            f"The tokenizer of {folder} finds no token in its own words: transformers reads its "
            f"files as {type(tokenizer).__name__}, for which they were not made. Copy the files "
            "of the tokenizer that the checkpoint was published with into the folder."
        )
    rows = _rows_of_config(Path(folder))
    if rows is not None and grow_table:
        rows = max(rows, required_rows(tokenizer))
    tokenizer.table_rows = rows
    _refuse_words_without_embedding(tokenizer)
    _choose_padding(tokenizer)
    return tokenizer


def _reads_its_own_words(tokenizer: transformers.PreTrainedTokenizerBase) -> bool:
    special = set(tokenizer.all_special_ids)
    ids = [index for index in sorted(tokenizer.get_vocab().values()) if index not in special]
    # Not verbose: that the text is long is no news here.
    found = tokenizer(tokenizer.decode(ids[:1000]), add_special_tokens=False, verbose=False)
    return bool(found["input_ids"])


def required_rows(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """Rows that a table of embeddings needs to have one for every token.

    Raises:
        ValueError: an id so large that most rows would belong to no token.
    """
    ids = tokenizer.get_vocab()
    token = max(ids, key=ids.__getitem__)
    if ids[token] >= ROWS_PER_TOKEN * len(ids) + TOKENS_BESIDES:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} has {len(ids)} tokens, but {token!r} has "
            f"the id {ids[token]}: most rows of such a table would belong to no token."
        )
    return ids[token] + 1


def is_of_library(error: BaseException) -> bool:
    """Whether an error is what the tokenizers library raises, and not, say, Ctrl-C."""
    # A panic of the tokenizers library (a regular expression without end) is no Exception.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


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
    token = max(ids.keys() - special, key=ids.__getitem__)
    index = ids[token]
    rows: Any = tokenizer.table_rows
    if rows is not None and index >= rows:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} knows {index + 1} tokens, but the network "
            f"has embeddings for {rows} (vocab_size): {token!r} has none. The tokenizer belongs to "
            "another network, or tokens were added to it and the embeddings were not resized."
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
