"""A tokenizer.json looked at before the library reads it: what it would do to texts, bounded."""

import json
from pathlib import Path
from typing import Any

# Real ones write a character or two where one stood; some spell a line break out.
MOST_GROWTH = 100.0


def check_tokenizer_file(folder: Path) -> None:
    """Refuses a tokenizer.json whose replacements make one character into very many.

    The library applies them to every text, and while it loads to the added tokens: forty times
    "a to aa" is more than any machine's memory.

    Args:
        folder: where tokenizer.json stands; nothing is said if there is none.

    Raises:
        ValueError: not JSON, no object, or more growth than any tokenizer has.
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
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        factor = _growth(content.get(part))
        if factor > MOST_GROWTH:
            raise ValueError(
                f"{path}: its {part} makes up to {factor:.0e} characters of one; a tokenizer that "
                "works does nothing of the kind. Fetch the file anew from where it was published."
            )


def _growth(step: Any) -> float:
    """Most characters that a step, or a sequence of steps, makes of one."""
    if not isinstance(step, dict):
        return 1.0
    factor = 1.0
    for steps in step.values():
        for inner in steps if isinstance(steps, list) else ():
            factor *= _growth(inner)
    if step.get("type") == "Replace" and isinstance(step.get("content"), str):
        pattern = step.get("pattern")
        matched = pattern.get("String") if isinstance(pattern, dict) else None
        length = len(matched) if isinstance(matched, str) else 1
        factor *= max(1.0, len(step["content"]) / max(length, 1))
    return factor
