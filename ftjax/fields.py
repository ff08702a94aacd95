"""The language of configs: what a field is, which fields others bring along, and the nearest name.

Fields stand beside the code that reads them, in flat dicts from dotted name to `Field`. A field may
bring others: each of its `options` those that are read with that value, and `if_set` those that are
read when it does not have its default. A name with `None` in the place of a field says that with
this value nobody reads it, whoever else declares it.
"""

import ast
import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Fields = Mapping[str, "Field | None"]
# A config or a part of it: which fields it has depends on what is chosen in it.
Settings = Any

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}
PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}


@dataclasses.dataclass(frozen=True)
class Field:
    """One thing an experiment can say.

    Attributes:
        default: its value when nothing is said; its type is the field's type.
        meaning: one line.
        choices: allowed values; those of `options` if there are some.
        minimum: smallest allowed number.
        maximum: largest allowed number.
        above: the number must be larger than this.
        below: the number must be smaller than this.
        optional: the type of a field that may be None.
        items: the type of a tuple's items.
        required: refused while it still has the default.
        options: value -> fields that are read with it.
        if_set: fields that are read when the value is not the default.
    """

    default: Any
    meaning: str
    choices: tuple | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    optional: type | None = None
    items: type | None = None
    required: bool = False
    options: Mapping[Any, Fields] | None = None
    if_set: Fields | None = None

    @property
    def kind(self) -> type:
        """The type of its values."""
        return self.optional or type(self.default)

    def allowed(self) -> str:
        """What values the field takes, in words."""
        if choices := self._choices():
            return "one of " + ", ".join(map(repr, choices))
        text = WORDS.get(self.kind, f"a tuple of {PLURALS.get(self.items, 'values')}")
        signs = ((">=", self.minimum), (">", self.above), ("<=", self.maximum), ("<", self.below))
        limits = " and ".join(f"{sign} {limit}" for sign, limit in signs if limit is not None)
        return f"{text} {limits}".strip() + (" or None" if self.optional else "")

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if value is None:
            return None if self.optional else "has no value"
        if self.required and value == self.default:
            return "must be set"
        if not _is_a(value, self.kind):
            return f"is {value!r}"
        if (choices := self._choices()) and value not in choices:
            return f"is {value!r}{nearest(value, map(str, choices))}"
        for item in value if isinstance(value, tuple) else (value,):
            if self.items is not None and not _is_a(item, self.items):
                return f"is {value!r}"
            if isinstance(item, int | float) and self._outside(item):
                return f"is {value!r}"
        return None

    def parse(self, text: str) -> Any:
        """The value that a text on the command line stands for; the text where it stands for none.

        What comes out may still be wrong: see `problem`.
        """
        if text == "None" or (text == "" and self.optional):
            return None
        if self.kind is str:
            return text
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return {"true": True, "false": False}.get(text.lower(), text)
        if self.kind is tuple and not isinstance(value, tuple | list):
            value = (value,)
        return tuple(value) if isinstance(value, list) else value

    def brought(self, value: Any) -> Fields:
        """The fields that are read with a value of this one."""
        found = (self.options or {}).get(value, {})
        return {**found, **self.if_set} if self.if_set and value != self.default else found

    def _choices(self) -> tuple | None:
        return tuple(self.options) if self.options else self.choices

    def _outside(self, number: float) -> bool:
        return (
            not math.isfinite(number)
            or (self.minimum is not None and number < self.minimum)
            or (self.maximum is not None and number > self.maximum)
            or (self.above is not None and number <= self.above)
            or (self.below is not None and number >= self.below)
        )


def read_fields(fields: Fields, values: Mapping[str, Any]) -> dict[str, Field]:
    """The fields that are read, given what is chosen.

    Args:
        fields: of all, with what they bring.
        values: of the fields that bring others; their defaults where they are missing.
    """
    found: dict[str, Field] = {}
    unread: set[str] = set()

    def add(fields: Fields) -> None:
        for name, field in fields.items():
            if field is None:
                unread.add(name)
                continue
            found[name] = field
            add(field.brought(values.get(name, field.default)))

    add(fields)
    return {name: field for name, field in found.items() if name not in unread}


def all_fields(fields: Fields) -> dict[str, list[tuple[str, str]]]:
    """Every name that some choice reads, with the choices: (name of the field, value in words)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, reader in _with_readers(fields, None):
        found.setdefault(name, [])
        if reader is not None and reader not in found[name]:
            found[name].append(reader)
    return found


def _with_readers(fields: Fields, reader: tuple[str, str] | None) -> Iterator[tuple]:
    for name, field in fields.items():
        if field is None:
            continue
        yield name, reader
        for value, brought in (field.options or {}).items():
            yield from _with_readers(brought, (name, f"{value!r}"))
        if field.if_set:
            yield from _with_readers(field.if_set, (name, f"other than {field.default!r}"))


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean ...?`, or nothing if no known name is like it."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
