import concurrent.futures
import contextlib
import json
import threading
import time

import pytest
import requests
import tensorflow_datasets as tfds

from ftjax.data import builders
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
        ("x.xls", b"", ValueError, "unknown kind of data"),
        ("x.csv", b"clause,kind\n", ValueError, "holds no records"),
        ("x.jsonl", b"", ValueError, "holds no records"),
        ("x.jsonl", b'{"clause": "a", "kind": "b"}\n{"clause": ', ValueError, "line 2: not valid"),
        ("x.jsonl", b"[1]\n", ValueError, "line 1: expected an object"),
        (
            "x.jsonl",
            b'{"clause": "a", "sort": "b"}',
            ValueError,
            "line 1: there is no field 'kind'",
        ),
        ("x.csv", b"clause,sort\na,b\n", ValueError, r"it has: clause, sort\).*label_field"),
        ("x.csv", b"clause,kind\na,b\nc\n", ValueError, "line 3: 1 cells, not as many cells"),
        ("x.csv", b"clause,kind\na,b,c\n", ValueError, "line 2: 3 cells, not as many cells"),
        (
            "x.csv",
            "clause,kind\né,b\nc".encode() + b"\xff,d\n",
            ValueError,
            "3, byte 18: not valid UTF-8",
        ),
        ("x.jsonl", b'{"clause": "a", "kind": null}', ValueError, "line 1: .*'kind' is null"),
        ("x.jsonl", rb'{"clause": "a \ud83d", "kind": "b"}', ValueError, "1: .*half a character"),
        ("x.jsonl", b'{"clause": "a", "kind": NaN}', ValueError, "line 1: .*'kind' is nan"),
        ("x.csv", b"clause,kind,kind\na,b,c\n", ValueError, "header names 'kind' twice"),
        ("x.parquet", b"PAR1, it says", ValueError, "x.parquet cannot be read as Parquet"),
    ],
)
def test_bad_input_says_where_and_what(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        load_records(str(path), split="", fields=FIELDS)


def test_too_few_records_are_not_divided(tmp_path):
    write_csv(tmp_path / "all.csv", ROWS)
    with pytest.raises(ValueError, match=r"3 different records, too few.*\{split\} in the path"):
        load_records(str(tmp_path / "all.csv"), split="test", fields=FIELDS)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\r\n"])
def test_line_separators_inside_a_json_text_are_text(tmp_path, mark):
    path = tmp_path / "x.jsonl"
    line = json.dumps({"clause": f"one{mark}two", "kind": "a"}, ensure_ascii=False)
    path.write_bytes((line + "\r\n" + line).encode())
    records = load_records(str(path), split="", fields=FIELDS)
    assert [record["text"] for record in records] == [f"one{mark}two"] * 2


def test_a_text_of_a_million_characters(tmp_path):
    rows = [{"clause": "word " * 200_000, "kind": "a"}]
    write_csv(tmp_path / "x.csv", rows)
    (record,) = load_records(str(tmp_path / "x.csv"), split="", fields=FIELDS)
    assert record["text"] == rows[0]["clause"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("license_clause", "no dataset tfds://license_clause. Nearest: license_clauses.*catalog"),
        ("someone:dataset", "run code from the network"),
    ],
)
def test_a_dataset_that_tfds_cannot_give(tmp_path, monkeypatch, name, message):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        load_records(f"tfds://{name}", split="train", fields=FIELDS)


@pytest.mark.parametrize("name", ["glue/sst2", "multi_nli", "clinc_oos", "yelp_polarity_reviews"])
def test_without_a_network_a_known_name_is_one_sentence_at_once(tmp_path, monkeypatch, capfd, name):
    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(requests.Session, "get", refuse)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"tfds://{name} is not in the cache.*Check the net"):
        load_records(f"tfds://{name}", split="train", fields=FIELDS)
    assert time.monotonic() - start < 30
    assert len(capfd.readouterr().err.splitlines()) < 5


class Slow(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Says how often it was prepared, and waits for another to come in between."""

    VERSION = tfds.core.Version("1.0.0")
    prepared = 0
    both_prepare = threading.Barrier(2)

    def _info(self):
        features = {"clause": tfds.features.Text(), "kind": tfds.features.Text()}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download_manager):
        type(self).prepared += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            self.both_prepare.wait(timeout=2)
        return {"train": enumerate(ROWS)}

    def _generate_examples(self, rows):
        yield from rows


def test_two_runs_that_want_the_same_dataset_prepare_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(builders, "find_builder", {"slow": Slow}.get)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        loads = [
            threads.submit(load_records, "tfds://slow", split="train", fields=FIELDS)
            for _ in range(2)
        ]
        prints = [load.result().fingerprint for load in loads]
    assert prints[0] == prints[1]
    assert Slow.prepared == 1
