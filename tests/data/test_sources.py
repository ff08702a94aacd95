import json

import pytest

from ftjax.data.sources import load_records

FIELDS = {"text": "clause", "label": "kind"}
ROWS = [
    {"clause": "plain", "kind": "a"},
    {"clause": 'a "quoted", text\nover two lines', "kind": "b"},
    {"clause": "ünïcødé 漢字", "kind": "a"},
]


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")


def write_csv(path, rows):
    import csv

    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_records_from_every_kind_of_file(tmp_path, kind):
    WRITERS[kind](tmp_path / f"train.{kind}", ROWS)
    source = str(tmp_path / ("{split}." + kind))
    records = load_records(source, split="train", fields=FIELDS)
    assert [records[i] for i in range(len(records))] == [
        {"text": row["clause"], "label": row["kind"]} for row in ROWS
    ]
    write_jsonl(tmp_path / "other.jsonl", ROWS)
    other = load_records(str(tmp_path / "other.jsonl"), split="", fields=FIELDS)
    assert records.fingerprint == other.fingerprint


def test_the_fingerprint_is_of_content_and_order(tmp_path):
    prints = set()
    for number, rows in enumerate([ROWS, ROWS[::-1], ROWS[:2]]):
        write_jsonl(tmp_path / f"{number}.jsonl", rows)
        path = str(tmp_path / f"{number}.jsonl")
        prints.add(load_records(path, split="", fields=FIELDS).fingerprint)
    assert len(prints) == 3


def test_a_limit(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", ROWS)
    assert len(load_records(str(tmp_path / "x.jsonl"), split="", fields=FIELDS, limit=2)) == 2


def test_a_plain_text_is_divided_in_order(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"paragraph {n}\nand more" for n in range(20)))
    parts = {
        split: load_records(str(path), split=split, fields={"text": "text"})
        for split in ("train", "validation", "test")
    }
    assert [len(part) for part in parts.values()] == [16, 2, 2]
    assert parts["test"][1]["text"] == "paragraph 19\nand more"
    with pytest.raises(ValueError, match="divided into train, validation, test"):
        load_records(str(path), split="dev", fields={"text": "text"})


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.csv", None, FileNotFoundError, "no data file .*missing.csv"),
        ("x.tsv", b"", ValueError, "unknown kind of data"),
        ("x.csv", b"clause,kind\n", ValueError, "holds no records"),
        ("x.jsonl", b"", ValueError, "holds no records"),
        ("x.jsonl", b'{"clause": "a", "kind": "b"}\n{"clause": ', ValueError, "line 2: not valid"),
        ("x.jsonl", b"[1]\n", ValueError, "line 1: expected an object"),
        (
            "x.jsonl",
            b'{"clause": "a", "sort": "b"}',
            ValueError,
            "record 1: there is no field 'kind'",
        ),
        ("x.csv", b"clause,sort\na,b\n", ValueError, r"it has: clause, sort\).*label_field"),
        ("x.csv", b"clause,kind\na,b\nc\n", ValueError, "line 3: not as many cells"),
        ("x.csv", b"clause,kind\na,b,c\n", ValueError, "line 2: not as many cells"),
        ("x.csv", b"clause,kind\na,b\nc\xff,d\n", ValueError, "line 3, byte 17: not valid UTF-8"),
        ("x.jsonl", b'{"clause": "a", "kind": null}', ValueError, "record 1: there is no field"),
    ],
)
def test_bad_input_says_where_and_what(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        load_records(str(path), split="", fields=FIELDS)
