"""Records: rows with our names, each of which knows where it stands."""

import contextlib
import datetime
import decimal
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np

Value = TypeVar("Value")

# What is learned from a text, and its name, as objectives call them; the rest is the text itself.
ANSWERS = ("answers", "id", "label", "labels", "tags", "target")

# Sentences on records that are left out; None where bad ones are refused.
LeftOut = list[str] | None
# Of records, the share that may be left out.
MOST_LEFT_OUT = 0.1

# Columns in which null stands for nothing, and what that is.
MAY_BE_NULL = {"tools": [], "input": ""}
# Columns whose values may be bytes or long lists, and are checked where they are decoded.
DECODED_LATER = ("image",)
# Columns that a config need not name.
OPTIONAL = ("second_text", *MAY_BE_NULL)

# A cell that is longer was made by a quotation mark that nobody closed, not by an author.
LONGEST_CELL = 2**24


class BadDataError(ValueError):
    """A sentence about data: what was wrong, where it stands, what to do."""


class BadRecordError(BadDataError):
    """Records that cannot be learned from; the message is about the first.

    Attributes:
        problems: index among the records -> a sentence with its place.
    """

    def __init__(self, problems: Mapping[int, str]):
        super().__init__(problems[min(problems)])
        self.problems = dict(problems)


class Places:
    """Where rows stand: "folder/train.csv, line 12", in few bytes for many rows."""

    def __init__(self, names: Sequence[str], which: np.ndarray, numbers: np.ndarray):
        """Remembers.

        Args:
            names: such as "folder/train.csv, line".
            which: int [rows], which of the names.
            numbers: int [rows], counted from 1.
        """
        self._names, self._which, self._numbers = names, which, numbers

    @classmethod
    def of_file(cls, name: str, numbers: Sequence[int]) -> "Places":
        """Of rows of one file."""
        return cls([name], np.zeros(len(numbers), np.int32), np.asarray(numbers, np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Places"]) -> "Places":
        """One behind the other."""
        names, which, numbers = [], [], []
        for part in parts:
            which.append(part._which + len(names))
            names += part._names
            numbers.append(part._numbers)
        return cls(names, np.concatenate(which), np.concatenate(numbers))

    def chosen(self, indices: np.ndarray) -> "Places":
        """Of some rows."""
        return Places(self._names, self._which[indices], self._numbers[indices])

    def __getitem__(self, index: int) -> str:
        return f"{self._names[self._which[index]]} {self._numbers[index]}"


class Records(Sequence):
    """Records of one split, in memory, with the names that an objective uses.

    Attributes:
        name: for messages.
    """

    def __init__(self, name: str, rows: list[dict[str, Any]], places: Places | None = None):
        """Remembers.

        Args:
            name: for messages.
            rows: each with our names.
            places: where each row stands; counted from 1 by default.
        """
        self.name = name
        self._rows = rows
        self._places = places or Places.of_file(f"{name}, record", range(1, len(rows) + 1))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the records' content and order."""
        digest = hashlib.sha256()
        # One encoder for all: json.dumps makes a new one for each call.
        encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=_digest).encode
        for row in self._rows:
            digest.update(encode(row).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        return self._rows[index]

    def where(self, index: int) -> str:
        """The file, and the line or record, of a row."""
        return self._places[index]

    def chosen(self, indices: np.ndarray, name: str | None = None) -> "Records":
        """Some of them, in the order of the indices."""
        rows = [self._rows[index] for index in indices]
        return Records(name or self.name, rows, self._places.chosen(indices))

    def without(self, field: str) -> "Records":
        """The same without a field."""
        rows = [{n: v for n, v in row.items() if n != field} for row in self._rows]
        return Records(self.name, rows, self._places)

    def with_values(self, field: str, values: Sequence[Any]) -> "Records":
        """The same with other values of a field, one for each row."""
        rows = [{**row, field: value} for row, value in zip(self._rows, values, strict=True)]
        return Records(self.name, rows, self._places)

    def renamed(self, names: Mapping[str, str]) -> "Records":
        """The same under other names: new -> old."""
        rows = [{new: row[old] for new, old in names.items()} for row in self._rows]
        return Records(self.name, rows, self._places)

    def contents(self) -> list[tuple]:
        """What is read of each record (all but the answer), to find equal ones."""
        return [
            tuple(v if isinstance(v, str) else repr(v) for n, v in row.items() if n not in ANSWERS)
            for row in self._rows
        ]


def _digest(value: Any) -> str:
    """What stands for bytes."""
    return hashlib.sha256(value).hexdigest()


def where_of(records: Sequence[Any], index: int) -> str:
    """Where a record stands, for messages: of `Records`, or of a plain list."""
    if isinstance(records, Records):
        return records.where(index)
    return f"record {index + 1}"


def bad_record(records: Sequence[Any], index: int, problem: str) -> BadRecordError:
    """What to raise of one record: `problem`, behind the place where it stands."""
    return BadRecordError({index: f"{where_of(records, index)}: {problem}"})


def of_each(records: Sequence[Any], function: Callable[[int], Value]) -> list[Value]:
    """What a function of the index makes of each record.

    Raises:
        BadRecordError: it did so for some; of all of them.
    """
    found, problems = [], {}
    for index in range(len(records)):
        try:
            found.append(function(index))
        except BadRecordError as error:
            problems |= error.problems
    if problems:
        raise BadRecordError(problems)
    return found


def joined_records(name: str, parts: Sequence[Records]) -> Records:
    """Records of several files, one behind the other."""
    rows = [row for part in parts for row in part]
    return Records(name, rows, Places.joined([part._places for part in parts]))


def records_of_columns(
    name: str,
    columns: Mapping[str, list],
    fields: Mapping[str, str],
    places: Places,
    left_out: LeftOut = None,
) -> Records:
    """Checked records of columns of equal length.

    Args:
        name: for messages.
        columns: our name -> values; a `BadDataError` in the place of one that could not be read.
        fields: our name -> the source's column, for messages.
        places: where each value stands.
        left_out: given a sentence for each bad record, which is then not among the records.

    Raises:
        BadDataError: a value that is missing, no number, half a character, bytes, or far too long.
    """
    columns = {
        ours: [MAY_BE_NULL[ours] if value is None else value for value in values]
        if ours in MAY_BE_NULL
        else values
        for ours, values in columns.items()
    }
    checked, problems = {}, {}
    for ours, values in columns.items():
        if ours in DECODED_LATER:
            checked[ours] = values
            continue
        try:
            checked[ours] = _checked(values, fields[ours], places)
        except BadRecordError as error:
            if left_out is None:
                raise
            checked[ours], problems = values, error.problems | problems
    names = tuple(checked)
    rows = [dict(zip(names, cells, strict=True)) for cells in zip(*checked.values(), strict=True)]
    records = Records(name, rows, places)
    if left_out is None or not problems:
        return records
    left_out += [problems[index] for index in sorted(problems)]
    return records.chosen(np.delete(np.arange(len(rows)), list(problems)))


def require_few(name: str, problems: Sequence[str], count: int) -> str:
    """A sentence on records that are left out.

    Args:
        name: of all.
        problems: a sentence for each that is left out.
        count: of all.

    Raises:
        BadDataError: so many that what is left is something else.
    """
    told = f"{len(problems):,} of {count:,} records cannot be learned from"
    if len(problems) > MOST_LEFT_OUT * count:
        raise BadDataError(
            f"{name}: {told}, too many to be left out (config.data.on_bad_record = 'skip' leaves "
            f"out {MOST_LEFT_OUT:.0%} at most). The first: {problems[0]}"
        )
    return f"{told} and are left out; the first: {problems[0]}"


def no_field(where: str, ours: str, theirs: str, known: Sequence[Any]) -> NoReturn:
    """Refuses a source that lacks a column.

    Raises:
        BadDataError: always.
    """
    if not known:
        raise BadDataError(f"{where}: there is nothing, not even names of columns.")
    shown = ", ".join(map(str, known[:30])) + (", ..." if len(known) > 30 else "")
    raise BadDataError(
        f"{where}: there is no field {theirs!r} (it has: {shown}). Set {ours}_field of the config "
        f"to the right one{', or to None' if ours in OPTIONAL else ''}."
    )


def inside(row: Mapping[str, Any], ours: str, theirs: str, where: str) -> Any:
    """What stands in a row under a name, or a path of names through nested ones.

    Of a list of objects, a name gives the list of what they have; a number one item, from 0.

    Raises:
        BadDataError: no such field.
    """
    if theirs in row:
        return row[theirs]
    value: Any = row
    for name in theirs.split("."):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, list) and all(isinstance(v, dict) and name in v for v in value):
            value = [item[name] for item in value]
        else:
            no_field(where, ours, theirs, list(row))
    return value


def _checked(values: list, theirs: str, places: Places) -> list:
    """The values; those of one text column in two quick looks, others one by one."""
    if set(map(type, values)) <= {str} and max(map(len, values), default=0) <= LONGEST_CELL:
        with contextlib.suppress(UnicodeEncodeError):
            "".join(values).encode()
            return values

    def value_of(index: int) -> Any:
        if isinstance(values[index], BadDataError):
            raise BadRecordError({index: str(values[index])})
        try:
            return _checked_value(values[index])
        except _BadValueError as error:
            raise BadRecordError(
                {index: f"{places[index]}: the field {theirs!r} {error}"}
            ) from error

    return of_each(values, value_of)


class _BadValueError(ValueError):
    """What is wrong with a value, behind "the field ..."."""


def _checked_value(value: Any) -> Any:
    if isinstance(value, str):
        _refuse_text(value)
        return value
    if value is None:
        raise _BadValueError("is null. Fill it or leave it out.")
    if isinstance(value, float) and not math.isfinite(value):
        raise _BadValueError(
            f"is {value}, which is what an empty cell of numbers becomes. Fill it or leave the "
            "record out."
        )
    if isinstance(value, list):
        return [_checked_value(item) for item in value]
    if isinstance(value, dict):
        # What lies deeper may be missing: messages have keys that not all of them use.
        return {
            str(name): item if item is None else _checked_value(item)
            for name, item in value.items()
        }
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    raise _BadValueError(f"holds {type(value).__name__}, not a text, number or list.")


def _refuse_text(value: str) -> None:
    if len(value) > LONGEST_CELL:
        raise _BadValueError(
            f"has {len(value):,} characters, and {LONGEST_CELL:,} are allowed. Is a quotation mark "
            "not closed? Else divide the text."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _BadValueError(
            "holds half a character (a lone surrogate such as \\ud83d), which is no text in any "
            "encoding. Remove it."
        ) from error
