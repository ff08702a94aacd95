"""Which files a path means, and what they are read as."""

import gzip
import itertools
import json
import zipfile

import pytest

from ftjax.data.sources import Division, Source, load_records
from ftjax.data.sources.files import find_files, match_split, split_of

FIELDS = {"text": "text", "label": "label"}
ROWS = [{"text": f"a; b, c\t| {n}", "label": "xy"[n % 2]} for n in range(3)]
JSONL = "\n".join(map(json.dumps, ROWS)).encode()


def csv_with(delimiter, end="\n"):
    lines = [f"text{delimiter}label", *(f'"{r["text"]}"{delimiter}{r["label"]}' for r in ROWS)]
    return end.join(lines).encode()


def read(path, split="", **how):
    source = Source(str(path), Division(**how))
    records = source.records(split, FIELDS)
    return list(records), source.notes


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("x.csv", csv_with(","), None),
        ("X.CSV", csv_with(","), None),
        ("x.csv", csv_with(",", "\r\n"), None),
        ("x.csv", csv_with(",", "\r"), None),
        ("x.csv", csv_with(";"), "separated by semicolons"),
        ("x.csv", csv_with("\t"), "separated by tabs"),
        ("x.csv", csv_with("|"), "separated by vertical bars"),
        ("x.csv", b"sep=;\n" + csv_with(";"), "separated by semicolons"),
        ("x.tsv", csv_with("\t"), None),
        ("x.tsv", csv_with(","), "separated by commas"),
        ("x.csv", csv_with(",") + b"\n\n,\n", None),
        ("x.csv", csv_with(",").decode().encode("utf-8-sig"), None),
        ("x.csv", csv_with(",").decode().encode("utf-16"), "read as UTF-16-LE"),
        ("x.csv", b"\xfe\xff" + csv_with(",").decode().encode("utf-16-be"), "read as UTF-16-BE"),
        ("x.csv", csv_with(",").decode().encode("utf-16-le"), "read as UTF-16-LE"),
        ("x.csv", csv_with(",").decode().encode("utf-32"), "read as UTF-32-LE"),
        ("x.csv.gz", gzip.compress(csv_with(",")), None),
        ("x.csv", gzip.compress(csv_with(",")), None),
        ("x.jsonl", JSONL, None),
        ("x.ndjson", JSONL, None),
        ("x.Jsonl.GZ", gzip.compress(JSONL), None),
        ("x.jsonl", JSONL.replace(b"\n", b"\r"), None),
        ("x.json", JSONL, None),
        ("x.json", json.dumps(ROWS, indent=2).encode(), None),
        ("x.json", json.dumps({"version": 1, "data": ROWS}).encode(), None),
    ],
    # Not of the contents: a packed file holds the time, and all workers must name a test alike.
    ids=itertools.count(),
)
def test_the_same_records_from_every_kind_of_file(tmp_path, name, content, note):
    (tmp_path / name).write_bytes(content)
    records, notes = read(tmp_path / name)
    assert records == ROWS
    assert [n for n in notes if note and note in n] == notes
    assert len(notes) == bool(note)


def test_a_delimiter_is_recognised_with_care(tmp_path):
    texts = {
        # A comma in every text, as many as there are.
        "label;text\nx;one, two\ny;three, four\n": ["one, two", "three, four"],
        # A single column, with commas in quotes, or with semicolons that are text.
        'text\n"one, two"\nthree\n': ["one, two", "three"],
        "text\none; two\nthree\n": ["one; two", "three"],
        # Commas it is, although every text has semicolons.
        "text,label\na; b,x\nc; d,y\n": ["a; b", "c; d"],
    }
    for content, expected in texts.items():
        (tmp_path / "x.csv").write_text(content)
        records = load_records(str(tmp_path / "x.csv"), split="", fields={"text": "text"})
        assert [record["text"] for record in records] == expected


def test_windows_1252_is_read_with_a_word(tmp_path):
    text = "text,label\n“Où est le café?” – “Là-bas”,fr\nplain,en\n"
    (tmp_path / "x.csv").write_bytes(text.encode("cp1252"))
    records, notes = read(tmp_path / "x.csv")
    assert records[0]["text"] == "“Où est le café?” – “Là-bas”"
    assert notes == [f"{tmp_path / 'x.csv'} was read as Windows-1252, not UTF-8."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nпривет мир,ru\n".encode("cp1251"), "line 2, byte 11: not valid UTF-8.*iconv"),
        ("text,label\n你好世界,zh\n".encode("gb18030"), "line 2, byte 11: not valid UTF-8.*iconv"),
        ("text,label\nné,fr\n".encode() + b"\xff,x\n", "line 3, byte 18.*although the rest is"),
        (b"text,label\na,x\nb\0,y\n", "line 3: a zero byte"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"PK\x03\x04 a workbook", "Excel workbook"),
        (b"\xff\xfea", "not valid UTF-16-LE"),
    ],
)
def test_what_is_no_text_says_so(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.csv.*{message}"):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\n"two\nlines",x\nc\n', "line 4: 1 cells"),
        ('text,label\n"two\nlines"\nc,x\n', "line 2: 1 cells"),
        ('text,label\na,x\n\n"b" c,x\n', "line 4: .*begins in line 4"),
        ('text,label\na,x\n"b,x\nc,x\n', "line 4: .*begins in line 3.*not closed"),
        ("text,label\na,x\ntext,label\nb,x\n", "line 3: the header stands here again"),
        ("sep=,\ntext,label\na,x\nb\n", "line 4: 1 cells"),
        ("text,label\na,x\n" + "b," * 50 + "\n", "line 3: 51 cells"),
    ],
)
def test_lines_are_counted_as_an_editor_does(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a", "label": "x"}, {"text": "b"}]', "record 2: there is no field 'label'"),
        ('[{"text": "a", "label": "x"}, 3]', "record 2: expected an object"),
        ('[{"text": "a",\n "label" "x"}]', r"x\.json, line 2: not valid JSON"),
        ('{"text": {"0": "a"}, "label": {"0": "x"}}\n\n', "list of records"),
        ('{"a": [{"text": "a"}], "b": [{"text": "a"}]}', "list of records"),
        ('"text"', "list of records"),
        ("[" * 100_000, "not valid JSON"),
        ('[{"text": "a", "text": "b", "label": "x"}]', "'text' stands twice"),
        ('[{"text": 1' + "0" * 5000 + ', "label": "x"}]', "not valid JSON"),
        ('[{"text": ["a", null], "label": "x"}]', "record 1: the field 'text' is null"),
        ('[{"text": ["a", NaN], "label": "x"}]', "record 1: the field 'text' is nan"),
    ],
)
def test_json_that_is_no_list_of_records(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x.json")


def test_a_cell_that_nobody_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("ftjax.data.sources.records.LONGEST_CELL", 100)
    (tmp_path / "x.csv").write_text("text,label\na,x\n" + "b" * 101 + ",y\n")
    with pytest.raises(ValueError, match=r"line 3: the field 'text' has 101 characters"):
        read(tmp_path / "x.csv")


def test_nested_columns(tmp_path):
    row = {
        "translation": {"de": "Hund", "en": "dog"},
        "answers": [{"text": "a"}, {"text": "b"}],
        "a.b": "whole",
    }
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    fields = {"de": "translation.de", "all": "answers.text", "one": "answers.1.text", "d": "a.b"}
    (record,) = load_records(str(tmp_path / "x.jsonl"), split="", fields=fields)
    assert record == {"de": "Hund", "all": ["a", "b"], "one": "b", "d": "whole"}
    with pytest.raises(ValueError, match=r"no field 'translation.fr' \(it has: translation, ans"):
        load_records(str(tmp_path / "x.jsonl"), split="", fields={"text": "translation.fr"})


def test_messages_keep_what_they_lack(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi", "name": None}], "label": "x"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    (record,) = load_records(str(tmp_path / "x.jsonl"), split="", fields={"messages": "messages"})
    assert record["messages"] == row["messages"]


# Folders, patterns, archives


def write_parts(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": f"{name} {n}", "label": "x"} for n in range(2)]
        (folder / name).write_text("\n".join(map(json.dumps, rows)))


def zipped(folder, names):
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, f"inside/{name}")
    return folder / "all.zip"


PARTS = [f"data/train-{n:05d}-of-00012.jsonl" for n in range(12)]
OTHERS = ["data/test-00000-of-00001.jsonl", "data/valid-00000-of-00001.jsonl"]


def test_a_folder_of_parts(tmp_path):
    write_parts(tmp_path, [*PARTS, *OTHERS])
    (tmp_path / "README.md").write_text("# data")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("no data")
    places = (
        str(tmp_path),
        str(tmp_path / "data" / "{split}-*.jsonl"),
        str(zipped(tmp_path, [*PARTS, *OTHERS, "README.md"])),
    )
    for place in places:
        (tmp_path / "all.zip").rename(tmp_path / "all.zap") if place == places[0] else None
        records, _ = read(place, "train")
        assert len(records) == 24
        assert records[4]["text"].endswith("train-00002-of-00012.jsonl 0")
        assert [len(read(place, split)[0]) for split in ("validation", "test")] == [2, 2]
        (tmp_path / "all.zap").rename(tmp_path / "all.zip") if place == places[0] else None


def test_a_missing_part_is_noticed(tmp_path):
    write_parts(tmp_path, [*PARTS[:3], *PARTS[4:], *OTHERS])
    for place in (tmp_path, tmp_path / "data" / "{split}-*.jsonl"):
        with pytest.raises(ValueError, match="12 parts and 11 are there; part 3 is missing"):
            read(place, "train")


def test_parts_without_splits_are_one_table(tmp_path):
    write_parts(tmp_path, [f"part-{n}.jsonl" for n in range(12)])
    for place in (tmp_path, tmp_path / "part-*.jsonl"):
        records, _ = read(place)
        assert [record["text"] for record in records[4:6]] == ["part-2.jsonl 0", "part-2.jsonl 1"]
        parts = [read(place, split)[0] for split in ("train", "validation", "test")]
        assert [len(part) for part in parts] == [19, 3, 2]


def test_a_split_in_two_places_of_a_pattern(tmp_path):
    write_parts(tmp_path, ["train/train.jsonl", "test/test.jsonl", "test/other.jsonl"])
    records, _ = read(tmp_path / "{split}" / "{split}.jsonl", "test")
    assert [record["text"] for record in records] == ["test/test.jsonl 0", "test/test.jsonl 1"]
    with pytest.raises(FileNotFoundError, match=r"there are: test, train"):
        read(tmp_path / "{split}" / "{split}.jsonl", "validation")
    with pytest.raises(FileNotFoundError, match=r"no data file .*\{split\}\.csv"):
        read(tmp_path / "{split}.csv", "train")


def test_files_of_several_kinds_are_not_mixed(tmp_path):
    write_parts(tmp_path, ["train.jsonl", "test.jsonl"])
    (tmp_path / "train.csv").write_bytes(csv_with(","))
    with pytest.raises(ValueError, match=r"several kinds \(\.csv, \.jsonl\)"):
        read(tmp_path, "train")


def test_a_folder_without_data(tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no data; known kinds are \.csv"):
        read(tmp_path)


def test_one_member_of_an_archive(tmp_path):
    write_parts(tmp_path, ["x.jsonl"])
    records, _ = read(zipped(tmp_path, ["x.jsonl"]))
    assert len(records) == 2
    with pytest.raises(ValueError, match=r"all\.zip: inside/x\.jsonl, line 1: there is no field"):
        load_records(str(tmp_path / "all.zip"), split="", fields={"text": "body"})


def test_names_of_an_archive_lead_nowhere(tmp_path):
    (tmp_path / "inner").mkdir()
    with zipfile.ZipFile(tmp_path / "inner" / "x.zip", "w") as archive:
        archive.writestr("../../evil.jsonl", JSONL)
    with pytest.raises(ValueError, match="holds no data"):
        read(tmp_path / "inner" / "x.zip")
    assert {file.name for file in tmp_path.rglob("*")} == {"inner", "x.zip"}


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_what_unpacks_to_far_more_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("ftjax.data.archives.ALWAYS_ALLOWED_BYTES", 10_000)
    bomb = b'{"text": "' + b"a" * 10_000_000 + b'", "label": "x"}'
    path = tmp_path / f"x.jsonl.{kind}"
    if kind == "gz":
        path.write_bytes(gzip.compress(bomb))
    else:
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.jsonl", bomb)
    with pytest.raises(ValueError, match=r"more than|announces"):
        read(path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("my_dev_set.jsonl.gz", "dev"),
        ("test/part-1.csv", "test"),
        ("en/valid/000.json", "valid"),
        ("contest.csv", "contest"),
        ("challenge-00000-of-00001.csv", "challenge"),
        ("train_and_test.csv", "train_and_test"),
    ],
)
def test_the_split_that_a_name_tells(name, split):
    assert split_of(name) == split


def test_names_that_mean_the_same():
    assert match_split("validation", ["train", "dev"]) == "dev"
    assert match_split("validation", ["train", "dev", "val"]) is None
    assert match_split("challenge", ["train", "test"]) is None


def test_a_configuration_of_a_folder(tmp_path):
    names = [f"{config}/{split}.jsonl" for config in ("de", "fr") for split in ("train", "test")]
    write_parts(tmp_path, names)
    with pytest.raises(ValueError, match="needs a configuration; it has: de, fr"):
        find_files(str(tmp_path))
    assert len(read(tmp_path / "fr", "train")[0]) == 2
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: fr/t*\n"
    )
    (tmp_path / "README.md").write_text(card + "---\n# data")
    records, _ = read(tmp_path, "train")
    assert [r["text"] for r in records][::2] == ["fr/test.jsonl 0", "fr/train.jsonl 0"]
