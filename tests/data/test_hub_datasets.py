"""hf://datasets/... against a stand-in for the hub."""

import json
from typing import ClassVar

import pytest
from stand_in_hub import HubHandler, oid, running

from ftjax.data.sources import Division, Source, load_records

COMMIT = "c" * 40
FIELDS = {"text": "text", "label": "label"}
CARD = """---
license: mit
configs:
- config_name: plain
  default: true
  data_files:
  - split: train
    path: plain/train-*
  - split: test
    path: plain/test.jsonl
- config_name: raw
  data_files: raw/*.jsonl
---
# A data set
"""


def lines(what, count):
    rows = [{"text": f"{what} {n}", "label": n % 2} for n in range(count)]
    return "\n".join(map(json.dumps, rows)).encode()


REPOSITORIES = {
    "org/card": {
        "README.md": CARD.encode(),
        ".gitattributes": b"",
        "plain/train-00000-of-00002.jsonl": lines("first", 20),
        "plain/train-00001-of-00002.jsonl": lines("second", 20),
        "plain/test.jsonl": lines("test", 5),
        "raw/everything.jsonl": lines("raw", 30),
        "loader.py": b"raise SystemExit",
    },
    "org/folders": {
        ".gitattributes": b"",
        "de/train.csv": b"text,label\na,0\nb,1\n",
        "de/test.csv": b"text,label\nc,0\nd,1\n",
        "fr/train.csv": b"text,label\ne,0\n",
    },
    "org/script": {".gitattributes": b"", "script.py": b"raise SystemExit"},
}


class Hub(HubHandler):
    """The few answers of the hub's interface that a data set needs."""

    fetched: ClassVar[list[str]] = []

    def do_GET(self):
        path = self.path.partition("?")[0]
        repository = next((name for name in REPOSITORIES if f"datasets/{name}/" in path), None)
        files = REPOSITORIES.get(repository, {})
        rest = path.partition(f"datasets/{repository}/")[2]
        if rest.startswith("revision/"):
            known = rest.removeprefix("revision/") in ("main", "v1", COMMIT)
            found = json.dumps({"id": repository, "sha": COMMIT}).encode()
            self.answer(found) if known else self.answer(b"", 404, X_Error_Code="RevisionNotFound")
        elif rest.startswith("tree/"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": oid(content),
                }
                for name, content in files.items()
            ]
            self.answer(json.dumps(tree).encode())
        elif rest.startswith(f"resolve/{COMMIT}/"):
            name = rest.removeprefix(f"resolve/{COMMIT}/")
            if self.command == "GET":
                self.fetched.append(name)
            self.answer(files[name], ETag=f'"{oid(files[name])}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(cache, monkeypatch):
    Hub.fetched.clear()
    with running(Hub, monkeypatch) as server:
        yield server


@pytest.mark.parametrize("place", ["org/card", "org/card@v1", f"org/card@{COMMIT}/plain"])
def test_the_splits_that_the_card_says(hub, place):
    source = Source(f"hf://datasets/{place}", Division(fill=True))
    parts = [source.records(split, FIELDS) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [36, 4, 5]
    assert "has no validation; train is divided" in source.notes[0]
    assert not [name for name in Hub.fetched if name.startswith("raw/") or name.endswith(".py")]


def test_another_configuration(hub):
    source = Source("hf://datasets/org/card/raw")
    assert len(source.records("train", FIELDS)) == 30
    assert not [name for name in Hub.fetched if name.startswith("plain/")]
    with pytest.raises(ValueError, match="no configuration 'row'; it has: plain, raw"):
        Source("hf://datasets/org/card/row")


def test_folders_without_a_card(hub):
    with pytest.raises(ValueError, match="needs a configuration; it has: de, fr"):
        Source("hf://datasets/org/folders")
    records = load_records("hf://datasets/org/folders/de", split="test", fields=FIELDS)
    assert [record["text"] for record in records] == ["c", "d"]
    with pytest.raises(ValueError, match="line 1: there is no field 'body'"):
        load_records("hf://datasets/org/folders/de", split="test", fields={"text": "body"})


def test_a_script_is_not_run(hub):
    with pytest.raises(ValueError, match=r"not run\. Try .*org/script@refs/convert/parquet"):
        Source("hf://datasets/org/script")


def test_what_was_fetched_needs_no_network(hub):
    before = load_records("hf://datasets/org/card", split="train", fields=FIELDS)
    hub.shutdown()
    hub.server_close()
    after = load_records("hf://datasets/org/card", split="train", fields=FIELDS)
    assert before.fingerprint == after.fingerprint
    with pytest.raises(ConnectionError, match="hf://datasets/org/other is not complete"):
        Source("hf://datasets/org/other")


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("hf://datasets/imdb", ValueError, "expected hf://datasets/org/name"),
        ("hf://datasets/org/../name", ValueError, "expected hf://datasets/org/name"),
        ("hf://datasets/org/unknown", FileNotFoundError, "no such repository or revision"),
        ("hf://datasets/org/card@v9", FileNotFoundError, "no such repository or revision"),
        ("hf://org/name", ValueError, "hf://datasets/org/name"),
    ],
)
def test_addresses_that_lead_nowhere(hub, address, error, message):
    with pytest.raises(error, match=message):
        Source(address)
