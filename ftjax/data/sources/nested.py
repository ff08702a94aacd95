"""Records inside records, as SQuAD's files have them."""

from typing import Any

from ftjax.data.sources.records import BadDataError


def squad_questions(rows: list, name: str) -> tuple[list, str]:
    """The questions of articles with paragraphs, each with its `context` and `title`.

    Args:
        rows: of a file; SQuAD's have `paragraphs`, each with a `context` and questions (`qas`).
        name: of the file, for messages.

    Returns:
        The rows, and what one of them is: questions, or what was given, "record".

    Raises:
        BadDataError: a paragraph that is none; says which.
    """
    if not rows or not all(isinstance(row, dict) and "paragraphs" in row for row in rows):
        return rows, "record"
    found: list[Any] = []
    for number, article in enumerate(rows, start=1):
        where = f"{name}, article {number}"
        for at, paragraph in enumerate(_list(article["paragraphs"], "paragraphs", where), start=1):
            inside = f"{where}, paragraph {at}"
            if not isinstance(paragraph, dict) or "context" not in paragraph:
                raise BadDataError(f"{inside}: it has no context.")
            above = {"title": article.get("title"), "context": paragraph["context"]}
            for question in _list(paragraph.get("qas"), "qas", inside):
                if not isinstance(question, dict):
                    raise BadDataError(f"{inside}: its qas must be objects with fields.")
                found.append(above | question)
    return found, "question"


def _list(value: Any, field: str, where: str) -> list:
    if not isinstance(value, list):
        raise BadDataError(f"{where}: its {field} must be a list, not {str(value)[:80]!r}.")
    return value
