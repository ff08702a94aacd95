"""Files in CoNLL's columns: a word and its tag on each line, an empty line after each sentence."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ftjax.data.sources.records import BadDataError

KINDS = (".conll", ".iob", ".iob2", ".bio")
"""Ends of the names of such files."""


def read_sentences(path: str | Path) -> list[dict[str, Any]]:
    """The sentences of a file in IOB2, as `tokens`, `ner_tags` and `text`; see `sentences_of`.

    Raises:
        ValueError: as `sentences_of`, or a tag that is not O, B-name (begins) or I-name (goes on
            with the tag before it).
    """
    text = Path(path).read_text(encoding="utf-8")
    found = []
    for first, row in sentences_of(text, str(path)):
        for tag, number in zip(row.get("ner_tags", ()), first, strict=True):
            if (tag != "O" and not tag.startswith(("B-", "I-"))) or len(tag) == 2:
                raise _not_iob2(path, number, tag)
        if wrong := goes_on_with_nothing(row.get("ner_tags", ())):
            raise _not_iob2(path, first[wrong[0]], row["ner_tags"][wrong[0]])
        found.append(row)
    return found


def _not_iob2(path: str | Path, number: int, tag: str) -> ValueError:
    return ValueError(
        f"{path}, line {number}: the tag {tag!r} is not O, not B-name, and does not go on with the "
        "tag before it as I-name."
    )


def sentences_of(text: str, name: str) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The sentences of a text: the lines of their words, and `tokens`, `ner_tags` and `text`.

    The first column is the word, the last one its tag; where there is one column, there are no
    tags. `text` has the words with spaces between them. Columns are divided by tabs, or by spaces;
    lines that begin with -DOCSTART- and empty sentences are left out.

    Args:
        text: with line ends of any kind.
        name: for messages.

    Raises:
        BadDataError: some lines have a tag and some have none; names the first.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    has_tags: bool | None = None
    numbers: list[int] = []
    rows: list[list[str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip() and not line.startswith("-DOCSTART-"):
            cells = line.split("\t" if "\t" in line else None)
            has_tags = len(cells) > 1 if has_tags is None else has_tags
            if has_tags != (len(cells) > 1):
                raise BadDataError(
                    f"{name}, line {number}: expected a word and its tag, not {line!r}."
                    if has_tags
                    else f"{name}, line {number}: expected a word alone, as above, not {line!r}."
                )
            numbers.append(number)
            rows.append(cells)
        elif rows:
            tokens = [cells[0] for cells in rows]
            tags = {"ner_tags": [cells[-1] for cells in rows]} if has_tags else {}
            yield numbers, {"text": " ".join(tokens), "tokens": tokens, **tags}
            numbers, rows = [], []


def goes_on_with_nothing(tags: Sequence[str]) -> list[int]:
    """Where tags go on (I-name) with what did not begin, as IOB1 lets them; numbers of words."""
    before = ["O", *tags]
    return [
        place
        for place, tag in enumerate(tags)
        if tag.startswith("I-") and before[place] not in (f"B-{tag[2:]}", tag)
    ]


def columns_of(sentences: Iterable[Sequence[Sequence[str]]]) -> str:
    """Sentences, each as columns of equal length, such as words and tags, as lines of a file.

    With words, tags and predicted tags it is what conlleval reads.

    Raises:
        ValueError: a word that is empty or has a space, which divides columns.
    """
    lines = []
    for columns in sentences:
        for cells in zip(*columns, strict=True):
            if any(not cell or any(map(str.isspace, cell)) for cell in cells):
                raise ValueError(
                    f"{' '.join(map(repr, cells))} cannot stand in columns divided by spaces."
                )
            lines.append(" ".join(cells))
        lines.append("")
    return "".join(f"{line}\n" for line in lines)
