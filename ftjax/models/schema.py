"""What the values of a config may be: types with bounds, and the one check of them.

A config's dataclass says it with its annotations: `layer_norm_eps: Epsilon = 1e-12`. What comes
from a file is checked against them before anything is computed from it.
"""

import dataclasses
import functools
import reprlib
import types
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)


class Bounds(NamedTuple):
    """Least and most of a number; those named `above` and `below` are not among the allowed."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def admits(self, value: float) -> bool:
        """Whether a number lies within."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = zip(("at least", "at most", "above", "below"), self, strict=True)
        return " and ".join(f"{word} {value:,}" for word, value in words if value is not None)


class OneOf(tuple):
    """The values that are implemented."""


# The default of a field that `__post_init__` works out from others, where a file has it not or as
# null; null may also stand for what a subclass has another default for.
DERIVED: Any = None

# Sizes are larger than any network's, and small enough for a table of so many numbers.
Count = Annotated[int, Bounds(1, 2**24)]
Width = Annotated[int, Bounds(1, 2**20)]
Natural = Annotated[int, Bounds(0, 2**24)]
Layers = Annotated[int, Bounds(1, 1000)]
Token = Annotated[int, Bounds(-1, 2**31 - 1)]
Rate = Annotated[float, Bounds(0, below=1)]
Spread = Annotated[float, Bounds(0, 100)]
Epsilon = Annotated[float, Bounds(above=0, below=1)]
Positive = Annotated[float, Bounds(above=0, most=1e9)]


def problems(schema: type, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of a dataclass's fields, a phrase for each.

    Fields that are not there, and those that the dataclass lacks, are not looked at. Those that a
    file calls otherwise have the file's name (`file_names` of the dataclass).

    Args:
        schema: the dataclass.
        values: field -> value, as JSON has them: lists may stand for tuples, whole numbers for
            others, and an object for another dataclass (which then is not looked into).
    """
    file_names = getattr(schema, "file_names", {})
    return [
        f"{file_names.get(name, name)} = {reprlib.repr(values[name])} must be {expected}"
        for name, kind in _kinds(schema).items()
        if name in values and (expected := _expected(kind, values[name])) is not None
    ]


def require_values(schema: type, values: Mapping[str, Any]) -> None:
    """Refuses values that a dataclass's fields do not admit.

    Raises:
        ValueError: names every such field, its value and what is allowed.
    """
    if found := problems(schema, values):
        raise ValueError(f"config.json: {'; '.join(found)}.")


def depth(config: Any) -> int:
    """The layers that a config has, those of the configs in it included."""
    layers = 0
    for name, kind in _kinds(type(config)).items():
        value = getattr(config, name)
        if Layers in (kind, *get_args(kind)):
            layers += value or 0
        elif dataclasses.is_dataclass(value):
            layers += depth(value)
    return layers


def as_object(field: str, value: Any) -> dict[str, Any]:
    """A JSON object inside config.json; null is an empty one.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"config.json: {field} = {reprlib.repr(value)} must be an object.")
    return dict(value)


@functools.cache
def _kinds(schema: type) -> dict[str, Any]:
    hints = get_type_hints(schema, include_extras=True)
    families = [base for base in schema.__mro__ if dataclasses.is_dataclass(base)]
    derived = {f.name for base in families for f in dataclasses.fields(base) if f.default is None}
    return {
        field.name: hints[field.name] | None if field.name in derived else hints[field.name]
        for field in dataclasses.fields(schema)
    }


def _expected(kind: Any, value: Any) -> str | None:
    """What a value should have been, or None if it is that."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, limit = arguments
        if isinstance(limit, OneOf):
            known = isinstance(value, str) and value in limit
            return None if known else f"one of {', '.join(map(repr, limit))}"
        if _expected(base, value) is None and limit.admits(value):
            return None
        return f"{_expected(base, None)} {limit}"
    if origin in (Union, types.UnionType):
        expected = [text for part in arguments if (text := _expected(part, value)) is not None]
        return None if len(expected) < len(arguments) else " or ".join(expected)
    if origin is Literal:
        known = any(value == choice and type(value) is type(choice) for choice in arguments)
        return None if known else f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return _expected_sequence(arguments, value)
    if dataclasses.is_dataclass(kind):
        return None if isinstance(value, Mapping | kind) else "an object"
    return None if _is(kind, value) else NAMES[kind]


def _expected_sequence(arguments: tuple, value: Any) -> str | None:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    any_length = arguments[-1:] == (...,)
    parts = arguments[:1] * len(value) if is_list and any_length else arguments
    if is_list and len(value) == len(parts):
        expected = [_expected(*pair) for pair in zip(parts, value, strict=True)]
        expected = [text for text in expected if text is not None]
        return f"a list, each {expected[0]}" if expected else None
    return "a list" if any_length else f"a list of {len(arguments)}"


NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        # Also none that is no number, or larger than all of them.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) < float("inf") and value == value
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
