"""Records from TFDS builders and from JSONL, CSV and Parquet files, all by random access."""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjax.data.catalog import open_dataset

FILE_KINDS = (".jsonl", ".csv", ".parquet", ".txt")

# A plain text without {split} in its path is divided in order: what comes last is what is tested.
TEXT_SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0), "": (0.0, 1.0)}

LONGEST_CELL = 2**31 - 1
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Records(Sequence):
    """Records of one split, in memory, with the names that an experiment uses.

    Attributes:
        name: for messages.
        fingerprint: SHA-256 of the records' content and order.
    """

    def __init__(self, name: str, rows: list[dict[str, Any]]):
        self.name = name
        self._rows = rows
        digest = hashlib.sha256()
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
            digest.update(b"\n")
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


def load_records(
    source: str,
    *,
    split: str,
    fields: Mapping[str, str],
    limit: int | None = None,
) -> Records:
    """Reads a split of a source.

    Args:
        source: `tfds://name` or `tfds://name/config` for a TFDS dataset (those of
            `ftjax.data.builders`, or any that TFDS knows and can prepare without TensorFlow), or
            the path of a .jsonl, .csv, .parquet or .txt file, with `{split}` where splits are files
            (a .txt without it is divided in order).
        split: TFDS split (slices such as "train[:10%]" too), or what stands for `{split}`.
        fields: our name -> the source's column.
        limit: the first so many records only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown kind or split, empty split, a record that cannot be read or lacks a
            field; says which file and record.
    """
    if source.startswith("tfds://"):
        name, rows = f"{source} {split}", open_dataset(source.removeprefix("tfds://"), split)[1]
    else:
        path = Path(source.replace("{split}", split)).expanduser()
        name, rows = str(path), _from_file(path, split, divided="{split}" in source)
    chosen = []
    for number, row in enumerate(rows):
        if limit is not None and number >= limit:
            break
        chosen.append(_with_our_names(row, fields, f"{name}, record {number + 1}"))
    if not chosen:
        raise ValueError(f"{name} holds no records.")
    return Records(name, chosen)


def _with_our_names(row: Mapping[str, Any], fields: Mapping[str, str], where: str) -> dict:
    chosen = {}
    for ours, theirs in fields.items():
        if theirs not in row:
            raise ValueError(
                f"{where}: there is no field {theirs!r} (it has: {', '.join(map(str, row))}). Set "
                f"{ours}_field of the config to the right one."
            )
        value = row[theirs]
        if value is None:
            raise ValueError(f"{where}: the field {theirs!r} is null. Fill it or leave it out.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{where}: the field {theirs!r} is {value}, which is what an empty cell of numbers "
                "becomes. Fill it or leave the record out."
            )
        if isinstance(value, str) and HALF_CHARACTER.search(value):
            raise ValueError(
                f"{where}: the field {theirs!r} holds half a character (a lone surrogate such as "
                "\\ud83d), which is no text in any encoding. Remove it."
            )
        chosen[ours] = value
    return chosen


def _from_file(path: Path, split: str, *, divided: bool) -> Iterator[dict]:
    if path.suffix not in FILE_KINDS:
        raise ValueError(
            f"{path}: unknown kind of data. Use tfds://name, or a path ending in "
            f"{', '.join(FILE_KINDS)}."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no data file {path} (split {split!r}). In config.data.source, {{split}} "
            "stands for the split's name."
        )
    if split and not divided and path.suffix != ".txt":
        raise ValueError(
            f"{path}: with no {{split}} in the path, the split {split!r} would be the same records "
            "as any other. Write each split to a file of its own and put {split} where their names "
            "differ, such as folder/{split}.csv."
        )
    if path.suffix == ".txt":
        return _from_text(path, "" if divided else split)
    return {".jsonl": _from_jsonl, ".csv": _from_csv, ".parquet": _from_parquet}[path.suffix](path)


def _from_jsonl(path: Path) -> Iterator[dict]:
    # Not splitlines, which also breaks at U+2028 and others that JSON allows inside a text.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object with fields.")
        yield row


def _from_csv(path: Path) -> Iterator[dict]:
    # The module's own limit of 131,072 characters is for cells of forms, not for documents.
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path}: the header names {', '.join(map(repr, twice))} twice.")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: not as many cells as the header's "
                    f"{len(reader.fieldnames)}; a comma in a text needs quotes around the text."
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error


def _from_text(path: Path, split: str) -> Iterator[dict]:
    """Paragraphs (what blank lines separate) of a part of a text, as {"text": ...}."""
    if split not in TEXT_SHARES:
        known = ", ".join(name for name in TEXT_SHARES if name)
        raise ValueError(f"{path} has no split {split!r}; a plain text is divided into {known}.")
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", _text(path)) if part.strip()]
    begin, end = (round(share * len(paragraphs)) for share in TEXT_SHARES[split])
    yield from ({"text": paragraph} for paragraph in paragraphs[begin:end])


def _from_parquet(path: Path) -> Iterator[dict]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pip install 'ftjax[parquet]'.") from error
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}).") from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}, byte {error.start}: not valid UTF-8 ({error.reason}). Convert "
            "the file, for example with iconv -f latin1 -t utf-8."
        ) from error
