"""Parquet and Arrow files to columns; pyarrow is an extra and only imported here.

Both formats announce more rows than they hold bytes for, at no cost: a dictionary, or runs of equal
values, make six million rows of a few bytes. What a file announces is therefore held against its
size before it is made into values, and equal texts become one text that is referred to.
"""

import importlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ftjax.data.archives import allowed_bytes
from ftjax.data.sources.records import BadDataError, no_field
from ftjax.progress import track

# What a row costs at least, once it is a row.
BYTES_PER_ROW = 100
ROWS_AT_ONCE = 1024

Columns = tuple[dict[str, list], Sequence[int]]


def read_parquet(content: bytes, name: str, fields: Mapping[str, str]) -> Columns:
    """The columns of a Parquet file, and numbers of its records.

    Args:
        content: of the file.
        name: for messages.
        fields: our name -> column, or a path of names inside a nested one.

    Raises:
        BadDataError: no such column, or far more is announced than the file can hold.
        ImportError: without pyarrow.
    """
    parquet = _pyarrow("pyarrow.parquet", name)
    file = parquet.ParquetFile(io.BytesIO(content))
    schema, allowed = file.schema_arrow, allowed_bytes(len(content))
    columns = _columns(schema.names, name, fields)
    texts = [c for c in columns.values() if _is_text(schema.field(c).type)]
    others = sorted({c for c in columns.values() if c not in texts})
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    announced = sum(max(group.total_byte_size, 0) for group in groups)
    rows = max(file.metadata.num_rows, sum(group.num_rows for group in groups))
    _refuse_too_much(announced, rows, allowed, name)
    # Texts of a dictionary stay one text that is referred to.
    file = parquet.ParquetFile(io.BytesIO(content), read_dictionary=sorted(set(texts)))
    found: dict[str, list] = {column: [] for column in columns.values()}
    budget = _Budget(allowed, name)
    for index in track(range(len(groups)), f"reading {name}"):
        if texts:
            table = file.read_row_group(index, columns=sorted(set(texts)))
            for column in texts:
                for chunk in table.column(column).chunks:
                    found[column] += _texts(chunk, budget)
        if others:
            options = {"batch_size": ROWS_AT_ONCE, "row_groups": [index], "columns": others}
            for batch in file.iter_batches(**options):
                budget.spend(batch.nbytes)
                for column in others:
                    found[column] += batch.column(batch.schema.names.index(column)).to_pylist()
    return _picked(_named(found, schema, name), columns, name, fields)


def read_arrow(content: bytes, name: str, fields: Mapping[str, str]) -> Columns:
    """The columns of an Arrow file or stream, as datasets.save_to_disk writes them.

    Args, raises: as `read_parquet`.
    """
    ipc = _pyarrow("pyarrow.ipc", name)
    batches: Any
    try:
        batches = reader = ipc.open_stream(content)
    except ValueError:
        reader = ipc.open_file(content)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    allowed, rows = allowed_bytes(len(content)), 0
    columns = _columns(reader.schema.names, name, fields)
    found: dict[str, list] = {column: [] for column in columns.values()}
    budget = _Budget(allowed, name)
    for batch in batches:
        # What is not checked may point anywhere.
        batch.validate(full=True)
        rows += batch.num_rows
        _refuse_too_much(0, rows, allowed, name)
        for column in found:
            values = batch.column(batch.schema.names.index(column))
            if _is_text(values.type):
                found[column] += _texts(values, budget)
            else:
                budget.spend(values.nbytes)
                found[column] += values.to_pylist()
    return _picked(_named(found, reader.schema, name), columns, name, fields)


class _Budget:
    """What may still be made of a file."""

    def __init__(self, allowed: int, name: str):
        self._left, self._allowed, self._name = allowed, allowed, name

    def spend(self, size: int) -> None:
        """Takes so many bytes.

        Raises:
            BadDataError: too much.
        """
        self._left -= size
        if self._left < 0:
            _refuse_too_much(self._allowed - self._left, 0, self._allowed, self._name)


def _pyarrow(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{name}: reading Parquet and Arrow needs pip install 'ftjax[parquet]'."
        ) from error


def _is_text(kind: Any) -> bool:
    types = _pyarrow("pyarrow.types", "")
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _texts(values: Any, budget: _Budget) -> list[str | None]:
    """A text per row; equal ones are one object."""
    types, compute = _pyarrow("pyarrow.types", ""), _pyarrow("pyarrow.compute", "")
    if not types.is_dictionary(values.type):
        budget.spend(values.nbytes)
        return values.to_pylist()
    # Its indices, too, may point anywhere.
    values.validate(full=True)
    lengths = compute.binary_length(values.dictionary).take(values.indices)
    budget.spend((compute.sum(lengths).as_py() or 0) + 8 * len(values))
    known = values.dictionary.to_pylist()
    return [None if i is None else known[i] for i in values.indices.to_pylist()]


def _columns(names: Sequence[str], name: str, fields: Mapping[str, str]) -> dict[str, str]:
    """Of each of our names, the column in which it, or the beginning of its path, stands."""
    found = {}
    for ours, theirs in fields.items():
        column = theirs if theirs in names else theirs.split(".")[0]
        if column not in names:
            no_field(name, ours, theirs, names)
        if names.count(column) > 1:
            raise BadDataError(f"{name} names the column {column!r} twice.")
        found[ours] = column
    return found


def _named(found: dict[str, list], schema: Any, name: str) -> dict[str, list]:
    """Columns with names of classes, where datasets wrote beside their numbers what they mean."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return found
    if not isinstance(features, dict):
        return found
    return {
        column: [_with_names(value, features.get(column), f"{name}, {column}") for value in values]
        for column, values in found.items()
    }


def _with_names(value: Any, feature: Any, where: str) -> Any:
    """A value of a column as its feature in datasets means it; -1 is a class that is not known."""
    match value, feature:
        case list(), {"_type": "Sequence" | "List" | "LargeList", "feature": inner}:
            return [_with_names(item, inner, where) for item in value]
        case list(), [inner]:
            return [_with_names(item, inner, where) for item in value]
        case int(), {"_type": "ClassLabel", "names": list(names)}:
            if not -1 <= value < len(names):
                raise BadDataError(
                    f"{where}: there is class {value}, and only {len(names)} have names."
                )
            return None if value == -1 else names[value]
    return value


def _picked(
    found: dict[str, list], columns: dict[str, str], name: str, fields: Mapping[str, str]
) -> Columns:
    from ftjax.data.sources.formats import inside

    picked = {}
    for ours, column in columns.items():
        values, theirs = found[column], fields[ours]
        if theirs != column:
            values = [
                inside({column: value}, ours, theirs, f"{name}, record {number}")
                for number, value in enumerate(values, start=1)
            ]
        picked[ours] = values
    lengths = {len(values) for values in picked.values()}
    if len(lengths) > 1:
        raise BadDataError(f"{name}: its columns have different lengths; the file is damaged.")
    return picked, range(1, lengths.pop() + 1 if lengths else 1)


def _refuse_too_much(size: int, rows: int, allowed: int, name: str) -> None:
    if max(size, BYTES_PER_ROW * rows) > allowed:
        what = f"{rows:,} rows" if BYTES_PER_ROW * rows > size else f"{size:,} bytes"
        raise BadDataError(
            f"{name} announces {what}, far more than a file of its size can hold; refused."
        )
