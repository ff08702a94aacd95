"""Texts to token ids, and names of classes to numbers."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from ftjax.files import read_json

CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class TokenizedText:
    """Token ids of many texts, one behind the other.

    Attributes:
        input_ids: int32 [all tokens].
        offsets: int64 [texts + 1]; text i is input_ids[offsets[i]:offsets[i + 1]].
        token_type_ids: int32 [all tokens] for pairs of texts, else None.
        truncated: texts that were longer than allowed.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [texts]."""
        return np.diff(self.offsets)


def load_tokenizer(folder: str | Path) -> transformers.PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer; no code of the checkpoint is run.

    Raises:
        ValueError: the folder has none that works, it has no token to pad with, or it knows tokens
            that the network has no embedding for.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, use_fast=True, local_files_only=True
        )
    except Exception as error:
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
    _refuse_tokens_without_embedding(tokenizer, Path(folder))
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere; reusing EOS for it would teach a network never to stop only
        # if labels were masked by id, which nothing in ftjax does.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ValueError(f"The tokenizer of {folder} has no pad, unknown or end token to pad with.")
    return tokenizer


def _refuse_tokens_without_embedding(
    tokenizer: transformers.PreTrainedTokenizerBase, folder: Path
) -> None:
    """Under jit an index beyond a table reads its last row, and nobody would notice."""
    file = folder / "config.json"
    rows = read_json(file).get("vocab_size") if file.exists() else None
    # Special tokens may stand beyond the table (Gemma 3's for images does); text never holds them.
    ids = tokenizer.get_vocab()
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    token = max(ids.keys() - special, key=ids.get)
    index = ids[token]
    if rows is not None and index >= rows:
        raise ValueError(
            f"The tokenizer of {folder} knows {index + 1} tokens, but the network has embeddings "
            f"for {rows} (vocab_size): {token!r} has none. The tokenizer belongs to another "
            "network, or tokens were added to it and the embeddings were not resized."
        )


def tokenize(
    records: Sequence[dict[str, Any]],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    text_field: str = "text",
    second_text_field: str | None = None,
) -> TokenizedText:
    """Tokenises all records, with the tokenizer's special tokens.

    Args:
        records: each with the text, or two texts.
        tokenizer: a fast tokenizer.
        max_length: longer texts are cut to so many tokens, and counted; None cuts nothing.
        text_field: where the text is.
        second_text_field: where the second text of a pair is.

    Raises:
        ValueError: a record whose text is no text.
    """
    ids, types, lengths, truncated = [], [], [], 0
    for start in range(0, len(records), CHUNK):
        chunk = range(start, min(start + CHUNK, len(records)))
        texts = [_text(records, i, text_field) for i in chunk]
        pairs = [_text(records, i, second_text_field) for i in chunk] if second_text_field else None
        # Not verbose: what is longer than the network's positions is cut below.
        encoded = tokenizer(
            texts, pairs, truncation=False, return_token_type_ids=bool(pairs), verbose=False
        )
        limit = max_length or math.inf
        too_long = [i for i, row in enumerate(encoded["input_ids"]) if len(row) > limit]
        truncated += len(too_long)
        if too_long:
            encoded = tokenizer(
                texts,
                pairs,
                truncation=True,
                max_length=max_length,
                return_token_type_ids=bool(pairs),
            )
        lengths += [len(row) for row in encoded["input_ids"]]
        ids += [np.asarray(row, np.int32) for row in encoded["input_ids"]]
        if pairs:
            types += [np.asarray(row, np.int32) for row in encoded["token_type_ids"]]
    return TokenizedText(
        np.concatenate([*ids, np.empty(0, np.int32)]),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        np.concatenate(types) if types else None,
        truncated,
    )


def encode_labels(
    records: Sequence[dict[str, Any]], field: str = "label", classes: list[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers.

    Args:
        records: each with the label in `field`, text or number.
        field: its name.
        classes: the names of the classes; those found here, sorted, if None (the training split).

    Returns:
        int32 [records], and the classes.

    Raises:
        ValueError: a label that is empty, a list, or not among `classes`, or fewer than two classes
            in training.
    """
    names = [_label(records, i, field) for i in range(len(records))]
    if classes is None:
        classes = sorted(set(names))
        if len(classes) < 2:
            raise ValueError(
                f"The training split has the single label {classes}; two or more are needed."
            )
    number = {name: index for index, name in enumerate(classes)}
    for index, name in enumerate(names):
        if name not in number:
            raise ValueError(
                f"{_where(records, index)}: the label {name!r} was never seen in training (known: "
                f"{', '.join(classes)}). Add training examples of it or remove the record."
            )
    return np.asarray([number[name] for name in names], np.int32), classes


def _text(records: Sequence[dict[str, Any]], index: int, field: str) -> str:
    text = records[index][field]
    if not isinstance(text, str):
        raise ValueError(f"{_where(records, index)}: {field} is {text!r}, which is not a text.")
    return text


def _label(records: Sequence[dict[str, Any]], index: int, field: str) -> str:
    label = records[index][field]
    if not isinstance(label, str | int | float) or label == "":
        raise ValueError(
            f"{_where(records, index)}: the {field} is {label!r}; one name or number is needed."
        )
    return str(label)


def _where(records: Sequence[dict[str, Any]], index: int) -> str:
    return f"{getattr(records, 'name', 'records')}, record {index + 1}"
