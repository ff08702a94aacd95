"""Lists and objects that a table holds as text, as JSON, Python or NumPy write them."""

import ast
import io
import itertools
import json
import tokenize
from typing import Any

VALUES = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
LINE_ENDS = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)


def as_written(value: Any) -> Any:
    """What a text in brackets or braces stands for; anything else as it is.

    NumPy puts no commas between values, and `['a' 'b']` is two texts to it and one to Python: two
    are meant.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_with_commas(text))
    except (ValueError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError):
        return value


def _with_commas(text: str) -> str:
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    tokens = [token for token in found if token.type not in LINE_ENDS]
    parts = [tokens[0].string]
    for before, token in itertools.pairwise(tokens):
        together = before.type in VALUES and token.type in VALUES
        parts.append(f", {token.string}" if together else token.string)
    return " ".join(parts)
