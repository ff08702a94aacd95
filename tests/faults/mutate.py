"""Inputs changed a little by chance, and what a reader of them may do: read, or say no."""

import copy
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftjax

PACKAGE = Path(ftjax.__file__).parent
# What ftjax raises on purpose, with a sentence.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)
SECONDS = 10.0
NUMBERS = (0, -1, 1, 3, 0.5, 10**6, 2**31, 2**63, -(10**30), 1e300, float("nan"), float("inf"))
OTHERS = (None, True, False, "no", "", "3", "1e-5", [], {}, [None], [[1, 2]], {"a": {"b": [1]}})


def mutate_bytes(data: bytes, rng: random.Random, *, header: int | None = None) -> bytes:
    """Bytes cut short, or with a few of them replaced, doubled or left out.

    Args:
        data: what a file holds.
        rng: decides.
        header: only so many of the first bytes are changed; all by default.
    """
    content, within = bytearray(data), header or len(data)
    kind = rng.choice(["cut", "bytes", "bytes", "number", "left out", "doubled"])
    place = rng.randrange(within)
    if kind == "cut":
        return bytes(content[: rng.randrange(len(content))])
    if kind == "bytes":
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(within)] = rng.randrange(256)
    elif kind == "number":
        content[place : place + 8] = rng.choice([b"\xff" * 8, bytes(8), b"\x7f" * 8])
    elif kind == "left out":
        del content[place : place + rng.randrange(1, 9)]
    else:
        content[place:place] = content[place : place + 8]
    return bytes(content)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one thing in it changed: a value, a key, or left out.

    Numbers become others, NaN, infinite, text or a boolean, lists lose or repeat entries, anything
    becomes null or of another type. `json.dumps` writes what comes out.
    """
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(OTHERS)
    parent, key = rng.choice(places)
    kind = rng.choice(["number", "number", "other", "other", "out", "key", "twice"])
    if kind == "number":
        parent[key] = rng.choice(NUMBERS)
    elif kind == "other":
        parent[key] = rng.choice([*OTHERS, str(parent[key]), [parent[key]]])
    elif kind == "out":
        del parent[key]
    elif kind == "key" and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        parent[key] = [parent[key], parent[key]]
    return value


def _places(value: Any):
    """(container, key or index) of every value inside; of long lists the first few only."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value[:8])
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def sentence_or_result(
    call: Callable[..., Any], *arguments: Any, seconds: float = SECONDS
) -> tuple[Any, str | None]:
    """Calls, and asserts that what is raised is a sentence of ftjax's own, soon.

    Seconds are those of this process, that a busy machine fails no test.

    Returns:
        What the call gave and None, or None and the sentence.
    """
    start = time.process_time()
    try:
        found, sentence = call(*arguments), None
    except EXPECTED as error:
        frame = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        assert PACKAGE in frame.parents, traceback.format_exc()
        assert str(error)
        found, sentence = None, str(error)
    assert time.process_time() - start < seconds
    return found, sentence
