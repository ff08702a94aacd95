"""One file to columns: JSON Lines, JSON, CSV and its kin; Arrow and Parquet are in `arrow`.

Whatever a file holds, what comes out is columns of equal length, or one sentence with file and line
or record, counted from 1 as editors do.
"""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjax.data import archives
from ftjax.data.sources import arrow, conll
from ftjax.data.sources.decoding import decode
from ftjax.data.sources.nested import squad_questions
from ftjax.data.sources.records import (
    ANSWERS,
    BadDataError,
    LeftOut,
    Places,
    Records,
    inside,
    no_field,
    records_of_columns,
)
from ftjax.progress import track

ATOMIC = (".inter", ".user", ".item")
"""RecBole's: cells between tabs, never quoted, below names as `user_id:token`."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# Rows by which a delimiter is recognised.
LOOKED_AT = 20
LONGEST_CELL = 2**31 - 1

GZIP, ZIP, PARQUET, ARROW = b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"ARROW1"


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file, perhaps in an archive.

    Attributes:
        path: on the disk.
        member: name inside, if `path` is a .zip file.
    """

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def kind(self) -> str:
        """ ".csv" and so on, by the name without .gz, in small letters; of unknown ones too."""
        name = Path(self.member or self.path.name).name.lower().removesuffix(".gz")
        return Path(name).suffix

    @property
    def told(self) -> str:
        """The kind in words."""
        name = self.kind.removeprefix(".")
        return name.capitalize() if name in ("parquet", "arrow", "feather") else name.upper()

    def content(self) -> bytes:
        """What it holds, unpacked.

        Raises:
            ValueError: it is damaged.
        """
        if self.member is not None:
            content = archives.read_zip_member(self.path, self.member)
            if content.startswith(GZIP):
                raise BadDataError(f"{self.name} is packed twice; unpack the archive.")
            return content
        with open(self.path, "rb") as file:
            start = file.read(len(GZIP))
        return archives.read_gzip(self.path) if start == GZIP else self.path.read_bytes()


def read_file(
    file: DataFile,
    fields: Mapping[str, str],
    say: Callable[[str], None],
    left_out: LeftOut = None,
) -> Records:
    """The records of a file, with our names.

    Args:
        file: of one of `KINDS`.
        fields: our name -> column, or a path of names inside a nested one, such as "answers.text".
        say: told what a person should know of how it was read.
        left_out: as of `records_of_columns`.

    Raises:
        BadDataError: with file, line or record, and what to do.
        ImportError: Parquet or Arrow without pyarrow.
    """
    content = file.content()
    try:
        if content.startswith(PARQUET) or file.kind == ".parquet":
            columns, numbers = arrow.read_parquet(content, file.name, fields)
            unit = "record"
        elif content.startswith(ARROW) or file.kind in (".arrow", ".feather"):
            columns, numbers = arrow.read_arrow(content, file.name, fields)
            unit = "record"
        else:
            columns, numbers, unit = _read_text(file, content, fields, say, left_out)
        places = Places.of_file(f"{file.name}, {unit}", numbers)
        return records_of_columns(file.name, columns, fields, places, left_out)
    except (BadDataError, ImportError):
        raise
    except Exception as error:
        # Whatever a library says of a file that it cannot read, or memory that does not suffice.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadDataError(f"{file.name} cannot be read as {file.told} ({reason}).") from error


def text_of(file: DataFile, say: Callable[[str], None]) -> str:
    """The text of a file, its line ends as \\n.

    Raises:
        BadDataError: it is none.
    """
    text, note = decode(file.content(), file.name)
    if note:
        say(note)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(
    file: DataFile,
    content: bytes,
    fields: Mapping[str, str],
    say: Callable[[str], None],
    left_out: LeftOut,
) -> tuple[dict[str, list], Sequence[int], str]:
    """Columns, numbers of lines or records, and which of the two they are."""
    if content.startswith(ZIP):
        raise BadDataError(
            f"{file.name} is a zip archive or an Excel workbook; save a workbook's sheet as CSV."
        )
    text, note = decode(content, file.name)
    if note:
        say(note)
    if file.kind in (".csv", ".tsv"):
        return *_read_csv(text, file, fields, say), "line"
    if file.kind in ATOMIC:
        return *_read_atomic(text, file.name, fields), "line"
    if file.kind in conll.KINDS:
        found = list(conll.sentences_of(text, file.name))
        names = [f"{file.name}, line {lines[0]}" for lines, _ in found]
        rows = zip(names, (row for _, row in found), strict=True)
        return _columns_of_rows(rows, fields, left_out), [lines[0] for lines, _ in found], "line"
    if file.kind == ".json" and (rows := _json_rows(text, file.name)) is not None:
        rows, unit = squad_questions(rows, file.name)
        names = [f"{file.name}, {unit} {number}" for number in range(1, len(rows) + 1)]
        columns = _columns_of_rows(zip(names, rows, strict=True), fields, left_out)
        return columns, range(1, len(rows) + 1), unit
    return *_read_jsonl(text, file.name, fields, left_out), "line"


def _read_jsonl(
    text: str, name: str, fields: Mapping[str, str], left_out: LeftOut
) -> tuple[dict[str, list], list[int]]:
    # Not splitlines, which also breaks at U+2028 and others that JSON allows inside a text.
    lines = text.split("\n" if "\n" in text else "\r")
    numbers: list[int] = []

    def rows() -> Iterable[tuple[str, Any]]:
        for number, line in enumerate(track(lines, f"reading {name}"), start=1):
            if line and not line.isspace():
                numbers.append(number)
                where = f"{name}, line {number}"
                try:
                    yield where, _parsed(line, where)
                except BadDataError as error:
                    if left_out is None:
                        raise
                    yield where, error

    return _columns_of_rows(rows(), fields, left_out), numbers


def _json_rows(text: str, name: str) -> list | None:
    """The list of records of a JSON file; None if it is JSON Lines by another name."""
    if not text.strip():
        return []
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        first, _, rest = text.strip().partition("\n")
        if first.rstrip().endswith("}") and rest.lstrip().startswith("{"):
            return None
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadDataError(f"{name}{line}: not valid JSON ({_reason(error)}).") from error
    if isinstance(value, list):
        return value
    lists = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else []
    rows = [v for v in lists if v and all(isinstance(row, dict) for row in v)]
    if len(rows) == 1:
        return rows[0]
    nested = isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())
    if isinstance(value, dict) and not lists and not nested and "\n" not in text.strip():
        return [value]
    raise BadDataError(
        f"{name}: expected a list of records, [{{...}}, ...], or an object with one such list as "
        '{"data": [{...}, ...]}.'
    )


def _one_value_per_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_one_value_per_name)


def _parsed(line: str, where: str) -> Any:
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{where}: not valid JSON ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    # A line's own message says "line 1", which is not the file's.
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.colno}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _columns_of_rows(
    rows: Iterable[tuple[str, Any]], fields: Mapping[str, str], left_out: LeftOut
) -> dict[str, list]:
    columns: dict[str, list] = {ours: [] for ours in fields}
    wanted = [(ours, theirs, columns[ours].append) for ours, theirs in fields.items()]
    for where, row in rows:
        for ours, theirs, append in wanted:
            try:
                append(_cell(row, ours, theirs, where))
            except BadDataError as error:
                if left_out is None:
                    raise
                append(error)
    return columns


def _cell(row: Any, ours: str, theirs: str, where: str) -> Any:
    if isinstance(row, dict):
        return row[theirs] if theirs in row else inside(row, ours, theirs, where)
    raise (
        row
        if isinstance(row, BadDataError)
        else BadDataError(f"{where}: expected an object with fields.")
    )


def _read_csv(
    text: str, file: DataFile, fields: Mapping[str, str], say: Callable[[str], None]
) -> tuple[dict[str, list], list[int]]:
    # The module's own limit of 131,072 characters is for cells of forms, not for documents.
    csv.field_size_limit(LONGEST_CELL)
    skipped, text, delimiter = _delimiter(text, file.kind)
    if delimiter != {".csv": ",", ".tsv": "\t"}[file.kind]:
        say(f"{file.name}: its cells are separated by {DELIMITERS.get(delimiter, delimiter)}.")
    # Old Macintosh line ends; in a text with others, a \r alone is for the csv module to judge.
    text = text if "\n" in text else text.replace("\r", "\n")
    stream = io.StringIO(text, newline="")
    lines = track(stream, f"reading {file.name}", total=text.count("\n") + 1)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows, numbers = _csv_rows(reader, file.name, fields, skipped)
    found = _columns_of_cells(rows, fields)
    for ours, column in found.items():
        # A language has the code nan; a text of these three letters is a cell that was empty.
        missing = ("NaN",) if ours in ANSWERS else ("NaN", "nan")
        for index, cell in enumerate(column):
            if cell in missing:
                column[index] = BadDataError(
                    f"{file.name}, line {numbers[index]}: the field {fields[ours]!r} is {cell!r}, "
                    "which is how tables write what is missing. Fill it or leave the record out."
                )
    return found, numbers


def _read_atomic(
    text: str, name: str, fields: Mapping[str, str]
) -> tuple[dict[str, list], list[int]]:
    header, _, rest = text.partition("\n")
    names = (cell.strip().rpartition(":")[0] or cell.strip() for cell in header.split("\t"))
    lines = io.StringIO("\n".join(["\t".join(names), rest]), newline="")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    rows, numbers = _csv_rows(reader, name, fields, 0)
    return _columns_of_cells(rows, fields), numbers


def _columns_of_cells(rows: list[list[str]], fields: Mapping[str, str]) -> dict[str, list]:
    columns = zip(*rows, strict=True) if rows else [()] * len(fields)
    return {ours: list(column) for ours, column in zip(fields, columns, strict=True)}


def _csv_rows(
    reader: Any, name: str, fields: Mapping[str, str], skipped: int
) -> tuple[list[list[str]], list[int]]:
    """The wanted cells of each row, and the line in which it begins."""
    rows, numbers, line = [], [], 0
    try:
        header = next(reader, [])
        picked = _positions(header, fields, f"{name}, line {1 + skipped}")
        line = reader.line_num
        for cells in reader:
            begin, line = line + 1 + skipped, reader.line_num
            if not any(cells):
                continue
            if len(cells) != len(header) or cells == header:
                _refuse_row(cells, header, f"{name}, line {begin}", reader.dialect.delimiter)
            rows.append([cells[index] for index in picked])
            numbers.append(begin)
    except csv.Error as error:
        raise BadDataError(
            f"{name}, line {reader.line_num + skipped}: {error} (in the record that begins in "
            f"line {line + 1 + skipped}). Is a quotation mark not doubled, or not closed?"
        ) from error
    return rows, numbers


def _refuse_row(cells: list[str], header: list[str], where: str, delimiter: str) -> None:
    if cells == header:
        raise BadDataError(f"{where}: the header stands here again. Remove the line.")
    raise BadDataError(
        f"{where}: {len(cells)} cells, not as many cells as the header's {len(header)}; a "
        f"{delimiter!r} or line end in a text needs quotes around the text."
    )


def _positions(header: list[str], fields: Mapping[str, str], where: str) -> list[int]:
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise BadDataError(f"{where}: the header names {', '.join(map(repr, twice))} twice.")
    for ours, theirs in fields.items():
        if theirs not in header and theirs not in names:
            no_field(where, ours, theirs, names)
    return [header.index(t) if t in header else names.index(t) for t in fields.values()]


def _delimiter(text: str, kind: str) -> tuple[int, str, str]:
    """Lines to skip before the header, the text without them, and what separates cells.

    The usual one of the kind, if the first rows have one number of cells with it; else the one that
    gives most cells, the same in each of these rows.
    """
    if match := re.match(r"sep=(.)\r?\n", text):
        return 1, text[match.end() :], match[1]
    usual = "\t" if kind == ".tsv" else ","
    found = {delimiter: _cells(text, delimiter) for delimiter in DELIMITERS}
    if found[usual] > 1:
        return 0, text, usual
    best = max(found, key=lambda delimiter: found[delimiter])
    return 0, text, best if found[best] > 1 else usual


def _cells(text: str, delimiter: str) -> int:
    """Cells of each of the first rows; 0 if they differ, or the header has an empty name."""
    start = io.StringIO(text if "\n" in text else text.replace("\r", "\n"), newline="")
    rows = []
    try:
        for cells in csv.reader(start, delimiter=delimiter, strict=True):
            if any(cells):
                rows.append(cells)
            if len(rows) == LOOKED_AT:
                break
    except csv.Error:
        return 0
    if not rows or len({len(cells) for cells in rows}) > 1:
        return 0
    return len(rows[0])
