"""Parquet, Arrow, and folders as datasets.save_to_disk leaves them."""

import builtins
import json
import time

import pytest

from ftjax.data.sources import Source, load_records

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FIELDS = {"text": "text", "label": "label"}
ROWS = [{"text": f"ünï {n % 3}", "label": n % 2} for n in range(3000)]


def read(path, split="", fields=FIELDS):
    return list(load_records(str(path), split=split, fields=fields))


def write_stream(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


def write_saved(folder, rows, parts=2):
    """What Dataset.save_to_disk of datasets 3 writes."""
    size = -(-len(rows) // parts)
    names = [f"data-{n:05d}-of-{parts:05d}.arrow" for n in range(parts)]
    for number, name in enumerate(names):
        write_stream(folder / name, pa.Table.from_pylist(rows[number * size :][:size]))
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"row_group_size": 700}])
def test_parquet(tmp_path, options):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet", **options)
    assert read(tmp_path / "x.parquet") == ROWS
    # What it is, it says itself.
    (tmp_path / "x.parquet").rename(tmp_path / "x.data")
    assert read(tmp_path / "x.data") == ROWS


def write_features(path, labels, names, tags=()):
    """A table with what datasets 3 writes into its schema beside it."""
    label = {"names": names, "_type": "ClassLabel"}
    features = {"label": label, "tags": {"feature": label, "_type": "Sequence"}}
    kept = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": [f"t{n}" for n in range(len(labels))], "label": labels})
    table = table.append_column("tags", pa.array([list(tags)] * len(labels), pa.list_(pa.int64())))
    table = table.replace_schema_metadata(kept)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        write_stream(path, table)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_classes_have_the_names_that_their_file_gives(tmp_path, kind):
    path, fields = tmp_path / f"x.{kind}", FIELDS | {"tags": "tags"}
    write_features(path, [1, 0, 1], ["neg", "pos"], tags=[0, 0, 1])
    found = read(path, fields=fields)
    assert [row["label"] for row in found] == ["pos", "neg", "pos"]
    assert found[0]["tags"] == ["neg", "neg", "pos"]
    write_features(path, [1, -1], ["neg", "pos"])
    with pytest.raises(ValueError, match="record 2: the field 'label' is null"):
        read(path)
    write_features(path, [1, 2], ["neg", "pos"])
    with pytest.raises(ValueError, match=r"x\..*, label: there is class 2, and only 2 have names"):
        read(path)


def test_nested_columns_of_parquet(tmp_path):
    rows = [
        {"translation": {"de": f"Hund {n}", "en": "dog"}, "answers": [{"text": "a"}, {"text": "b"}]}
        for n in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    fields = {"text": "translation.de", "all": "answers.text"}
    found = read(tmp_path / "x.parquet", fields=fields)
    assert found[3] == {"text": "Hund 3", "all": ["a", "b"]}
    with pytest.raises(ValueError, match=r"record 1: there is no field 'translation.fr'"):
        read(tmp_path / "x.parquet", fields={"text": "translation.fr"})
    with pytest.raises(ValueError, match=r"no field 'body' \(it has: translation, answers\)"):
        read(tmp_path / "x.parquet", fields={"text": "body"})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["a", None]), "record 2: the field 'text' is null"),
        (pa.array([1.0, float("nan")]), "record 2: the field 'text' is nan"),
        (pa.array([b"\xff", b"a"]), "record 1: the field 'text' holds bytes"),
        (pa.array([["a"], [None]]), "record 2: the field 'text' is null"),
    ],
)
def test_values_that_are_none(tmp_path, column, message):
    pq.write_table(pa.table({"text": column, "label": [0, 1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"x\.parquet, {message}"):
        read(tmp_path / "x.parquet")


def test_a_damaged_parquet_is_one_sentence(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:-100] + whole[-50:])
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as Parquet \("):
        read(tmp_path / "x.parquet")


def bomb(kind, rows=6_000_000):
    if kind == "equal rows":
        text = pa.array(["a"]).dictionary_encode().dictionary
        indices = pa.array([0] * rows, pa.int32())
    else:
        # A hundred megabytes in a dictionary, compressed to nothing, in every row.
        text, indices, rows = pa.array(["b" * 100_000_000]), pa.array([0] * 1000, pa.int32()), 1000
    text = pa.DictionaryArray.from_arrays(indices, text)
    return pa.table({"text": text, "label": pa.array([0] * rows, pa.int8())})


@pytest.mark.parametrize("kind", ["equal rows", "a large text"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_what_announces_more_than_it_can_hold_is_refused_at_once(tmp_path, kind, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        options = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
        pq.write_table(bomb(kind), path, **options)
        assert path.stat().st_size < 200_000
    else:
        if kind == "equal rows":
            pytest.skip("indices are held one by one")
        write_stream(path, bomb(kind))
    start = time.monotonic()
    with pytest.raises(ValueError, match="far more than a file of its size can hold"):
        read(path)
    assert time.monotonic() - start < 5


def test_equal_texts_are_one_object(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    records = read(tmp_path / "x.parquet")
    assert len({id(record["text"]) for record in records}) == 3


def test_a_saved_dataset(tmp_path):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(3000)]
    write_saved(tmp_path / "one", rows)
    assert read(tmp_path / "one") == rows
    assert len(read(tmp_path / "one", "train")) == 2400
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"names data-00001-of-00002\.arrow in state\.json"):
        read(tmp_path / "one")


def test_saved_splits(tmp_path):
    for split, rows in (("train", ROWS), ("validation", ROWS[:7]), ("test", ROWS[:5])):
        write_saved(tmp_path / "all" / split, rows, parts=1)
    dictionary = tmp_path / "all" / "dataset_dict.json"
    dictionary.write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    source = Source(str(tmp_path / "all"))
    assert [len(source.records(s, FIELDS)) for s in ("train", "validation", "test")] == [3000, 7, 5]
    dictionary.write_text(json.dumps({"splits": ["../../etc"]}))
    with pytest.raises(ValueError, match="has no list of splits"):
        Source(str(tmp_path / "all"))


def test_a_selection_beside_the_rows_is_not_ignored(tmp_path):
    write_saved(tmp_path, ROWS)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"a": 1}]}))
    with pytest.raises(ValueError, match="flatten_indices"):
        read(tmp_path)


def test_without_pyarrow_one_sentence(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(ImportError, match=r"x\.parquet: .*pip install 'ftjax\[parquet\]'"):
        read(tmp_path / "x.parquet")
