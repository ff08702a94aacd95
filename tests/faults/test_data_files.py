"""Files of records changed by chance: what is read is records, or one sentence says no.

A changed letter of a text is a text; so it is compared, where nothing was refused, that every
record has the fields, of the types that they had, and numbers that are numbers.
"""

import csv
import gzip
import io
import json
import math
import random
import zipfile

import pytest
from mutate import mutate_bytes, mutate_json, sentence_or_result

from ftjax.data.sources import Division, Source

FIELDS = {"text": "text", "label": "label"}
NESTED = {"text": "answers.text", "label": "label"}
ROWS = [
    {"text": f'row {n}, "with" ünï\n{"x" * n}', "label": n % 2, "answers": {"text": [f"a{n}", "b"]}}
    for n in range(40)
]
FLAT = [{name: row[name] for name in ("text", "label")} for row in ROWS]


def csv_file():
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text", "label"])
    writer.writeheader()
    writer.writerows(FLAT)
    return out.getvalue().encode()


def zip_file():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", csv_file())
        archive.writestr("test.csv", csv_file())
    return out.getvalue()


def parquet_file(compression="snappy"):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out, compression=compression, row_group_size=15)
    return out.getvalue()


def arrow_file():
    pa = pytest.importorskip("pyarrow")
    out = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=15)
    return out.getvalue()


FILES = {
    "x.csv": csv_file,
    "x.tsv": lambda: csv_file().replace(b",", b"\t"),
    "x.csv.gz": lambda: gzip.compress(csv_file(), mtime=0),
    "x.zip": zip_file,
    "x.jsonl": lambda: "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "x.json": lambda: json.dumps({"data": ROWS}, indent=1).encode(),
    "utf16.jsonl": lambda: "\n".join(map(json.dumps, ROWS)).encode("utf-16"),
    "x.parquet": parquet_file,
    "plain.parquet": lambda: parquet_file("none"),
    "x.arrow": arrow_file,
    "x.txt": lambda: "\n\n".join(row["text"] for row in ROWS).encode(),
}


def read(path, fields):
    source = Source(str(path), Division(fill=True))
    return [source.records(split, fields) for split in ("train", "validation", "test")]


def assert_are_records(parts, fields, kinds):
    for part in parts:
        assert len(part) and part.fingerprint
        for index, record in enumerate(part):
            assert record.keys() == fields.keys()
            assert part.where(index)
            json.dumps(record, allow_nan=False)
            assert isinstance(record["text"], str | list | int | float | dict)
            if isinstance(record.get("label"), float):
                assert math.isfinite(record["label"])
            if kinds:
                assert isinstance(record["text"], kinds)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", FILES)
def test_bytes_changed_by_chance(tmp_path, name, seed):
    whole = FILES[name]()
    rng = random.Random(f"{name} {seed}")
    # Half of the time where formats say what follows: at the beginning, or the end.
    header = rng.choice([None, 64])
    content = mutate_bytes(whole, rng, header=header)
    if name.endswith((".parquet", ".zip")) and rng.random() < 0.5:
        tail = rng.randrange(8, 400)
        content = whole[:-tail] + mutate_bytes(whole[-tail:], rng)
    (tmp_path / name).write_bytes(content)
    text_only = name == "x.txt"
    fields = {"text": "text"} if text_only else FIELDS
    if name.endswith((".parquet", ".arrow", ".json")) and seed % 2:
        fields = NESTED
    parts, _ = sentence_or_result(read, tmp_path / name, fields)
    if parts is not None:
        assert_are_records(parts, fields, str if "csv" in name or text_only else None)


@pytest.mark.parametrize("seed", range(40))
def test_values_changed_by_chance(tmp_path, seed):
    rng = random.Random(seed)
    rows = [mutate_json(row, rng) if n == 3 else row for n, row in enumerate(ROWS)]
    kind = ("jsonl", "json")[seed % 2]
    fields = (FIELDS, NESTED)[seed // 2 % 2]
    text = "\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows)
    (tmp_path / f"x.{kind}").write_text(text)
    parts, sentence = sentence_or_result(read, tmp_path / f"x.{kind}", fields)
    if sentence:
        assert ("line 4" if kind == "jsonl" else "record 4") in sentence
    else:
        assert_are_records(parts, fields, None)


def test_the_files_are_read_as_they_are(tmp_path):
    for name, make in FILES.items():
        (tmp_path / name).write_bytes(make())
        parts = read(tmp_path / name, {"text": "text"} if name == "x.txt" else FIELDS)
        texts = {record["text"] for part in parts for record in part}
        if name not in ("x.tsv", "x.txt"):
            assert texts == {row["text"] for row in ROWS}
