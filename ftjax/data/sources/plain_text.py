"""Plain texts: paragraphs, and where a text without splits is cut."""

import itertools
import re
from collections.abc import Sequence

from ftjax.data.sources.records import BadDataError, Places, Records
from ftjax.data.sources.splitting import FEWEST_PIECES, cuts

# What stands between pieces of a text, from large pieces to small ones.
BETWEEN = {
    "paragraphs": r"\n\s*\n",
    "lines": r"\n",
    "sentences": r"(?<=[.!?…])\s+|(?<=[。！？])",
    "words": r"\s+",
    "characters": r"(?<=.)(?=.)",
}


def paragraphs(text: str, name: str) -> Records:
    """What blank lines separate, as `text`.

    Args:
        text: with \\n as its line ends.
        name: for messages.
    """
    return _paragraphs(text, name, 0, len(text))


def divide_text(text: str, name: str, shares: Sequence[float]) -> tuple[list[Records], str]:
    """Parts of a text in order, each its paragraphs, and what the text was cut between.

    It is cut between paragraphs where there are enough of them, else between lines, sentences,
    words, or letters where words have no spaces; what stands between two cuts stays as it is.

    Raises:
        BadDataError: there is not enough of it.
    """
    # Letters are pieces only of scripts that put no spaces between words.
    spaced = len(text.split()) > 1
    found = (
        (what, _starts(text, between))
        for what, between in BETWEEN.items()
        if not (spaced and what == "characters")
    )
    what, starts = next((f for f in found if len(f[1]) >= FEWEST_PIECES), ("", []))
    if not what:
        raise BadDataError(
            f"{name} has {len(text.split()):,} words, too few to be divided into "
            f"{len(shares)} splits."
        )
    at = [*starts, len(text)]
    places = [at[cut] for cut in cuts(len(starts), shares)]
    return [_paragraphs(text, name, begin, end) for begin, end in itertools.pairwise(places)], what


def _starts(text: str, between: str) -> list[int]:
    """Where each piece that is not empty begins."""
    ends = [0, *(match.end() for match in re.finditer(between, text))]
    return [
        begin
        for begin, end in zip(ends, [*ends[1:], len(text)], strict=True)
        if text[begin:end].strip()
    ]


def _paragraphs(text: str, name: str, begin: int, end: int) -> Records:
    rows, lines = [], []
    line, counted = 1, 0
    at = [begin, *(m.end() for m in re.compile(BETWEEN["paragraphs"]).finditer(text, begin, end))]
    for start, stop in zip(at, [*at[1:], end], strict=True):
        piece = text[start:stop]
        if not piece.strip():
            continue
        first = start + len(piece) - len(piece.lstrip())
        line, counted = line + text.count("\n", counted, first), first
        rows.append({"text": piece.strip()})
        lines.append(line)
    return Records(name, rows, Places.of_file(f"{name}, line", lines))
