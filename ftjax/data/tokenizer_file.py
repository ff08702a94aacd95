"""A tokenizer.json looked at before the library reads it: what it would do to texts, bounded."""

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Real ones write a character or two where one stood; some spell a line break out.
MOST_GROWTH = 100.0
# What is applied to every text: the longest real ones have some tens of steps, no deeper than six.
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MOST_VALUES, DEEPEST = 10_000, 32
MOST_PADDING = 2**20


def check_tokenizer_file(folder: Path) -> None:
    """Refuses a tokenizer.json that would make very much of a little text.

    The library applies its steps to every text, and while it loads to the added tokens: forty times
    "a to aa" is more than any machine's memory.

    Args:
        folder: where tokenizer.json stands; nothing is said if there is none.

    Raises:
        ValueError: not JSON, no object, or more steps or growth than any tokenizer has.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no tokenizer that can be loaded ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} has no tokenizer that can be loaded: it holds a "
            f"{type(content).__name__} where an object with a model is needed."
        )
    for part in PARTS:
        if (found := _absurd(content.get(part))) is not None:
            raise ValueError(
                f"{path}: its {part} {found}; a tokenizer that works does nothing of the kind. "
                "Fetch the file anew from where it was published."
            )
    padding = content.get("padding")
    for length in _numbers(padding):
        if length > MOST_PADDING:
            raise ValueError(f"{path}: its padding is {length:,} tokens long; the file is damaged.")


def _absurd(step: Any) -> str | None:
    """What no tokenizer does, or None."""
    for count, (depth, _) in enumerate(_walk(step)):
        if count >= MOST_VALUES:
            return f"has more than {MOST_VALUES:,} values"
        if depth > DEEPEST:
            return f"is nested more than {DEEPEST} deep"
    factor = _growth(step)
    return f"makes up to {factor:.0e} characters of one" if factor > MOST_GROWTH else None


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """(depth, value) of all values in a JSON value, however deep it is."""
    waiting = [(0, value)]
    while waiting:
        depth, value = waiting.pop()
        yield depth, value
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            waiting.extend((depth + 1, item) for item in inner)


def _growth(step: Any) -> float:
    """Most characters that a step, or a sequence of steps, makes of one."""
    if not isinstance(step, dict):
        return 1.0
    factor = 1.0
    for steps in step.values():
        for inner in steps if isinstance(steps, list) else ():
            factor *= _growth(inner)
    kind = step.get("type")
    if kind == "Replace":
        pattern = step.get("pattern")
        matched = pattern.get("String") if isinstance(pattern, dict) else None
        factor *= max(1.0, _length(step.get("content")) / max(_length(matched), 1))
    elif kind == "Prepend":
        factor *= 1 + _length(step.get("prepend"))
    elif kind == "Precompiled":
        factor *= _longest_replacement(step.get("precompiled_charsmap"))
    return factor


def _length(text: Any) -> int:
    return len(text) if isinstance(text, str) else 0


def _longest_replacement(charsmap: Any) -> float:
    """Bytes of the longest text that SentencePiece's compiled map puts in a character's place.

    It is a trie, with its size in four bytes before it, and then the texts, each ended by a zero.
    """
    try:
        compiled = base64.b64decode(charsmap, validate=True) if isinstance(charsmap, str) else b""
    except binascii.Error:
        return 1.0
    texts = compiled[4 + int.from_bytes(compiled[:4], "little") :]
    return float(max(1, *map(len, texts.split(b"\0"))) if texts else 1)


def _numbers(value: Any) -> list[float]:
    return [
        item
        for _, item in _walk(value)
        if isinstance(item, int | float) and not isinstance(item, bool)
    ]
