"""The builders of public data: on small files of the published formats, and on the mirror."""

import collections
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from ftjax.data import archives, builders
from ftjax.data.archives import read_tar_members
from ftjax.data.builders import (
    banking77,
    bc5cdr,
    coffee_bar,
    mts_dialog,
    multidogo,
    ncbi_disease,
    vader,
)
from ftjax.data.catalog import open_dataset
from ftjax.data.rows_builder import split_by_hash
from ftjax.data.sources.conll import read_sentences

MIRROR = Path(os.environ.get("FTJAX_MIRROR") or Path(__file__).parents[3] / "shared/data")


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """(module, ending of the address -> content): what `fetch` gives instead of the public file."""
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))

    def replace(module, files):
        def fetch(address, sha256):
            assert len(sha256) == 64
            (ending,) = (ending for ending in files if address.endswith(ending))
            path = tmp_path / ending.replace("/", "_")
            path.write_bytes(files[ending])
            return path

        monkeypatch.setattr(module, "fetch", fetch)

    return replace


def rows_of(name, split):
    return list(open_dataset(name).rows(split))


def test_mts_dialog(publish):
    header = b"ID,section_header,section_text,dialogue\r\n"
    row = b'7,GENHX,"Cough, mild.","Doctor: Well?\nPatient: I cough."\r\n'
    publish(mts_dialog, {name: header + row for name, _ in mts_dialog.FILES.values()})
    for split in ("train", "validation", "test1", "test2"):
        assert rows_of("mts_dialog", split) == [
            {
                "dialogue": "Doctor: Well?\nPatient: I cough.",
                "section_header": "GENHX",
                "section_text": "Cough, mild.",
                "id": "7",
            }
        ]


def test_banking77_takes_a_tenth_of_each_intent_for_validation(publish):
    lines = [f'"Question, {n}?",intent_{n % 2}' for n in range(40)]
    train = "text,category\r\n" + "\r\n".join([*lines, *lines[:4]])
    publish(banking77, {"train.csv": train.encode(), "test.csv": b"text,category\r\n a ,b\r\n"})
    train, validation = (rows_of("banking77", split) for split in ("train", "validation"))
    assert rows_of("banking77", "test") == [{"text": "a", "label": "b"}]
    distinct = {(row["text"], row["label"]) for row in validation}
    assert collections.Counter(label for _, label in distinct) == {"intent_0": 2, "intent_1": 2}
    assert len(train) + len(validation) == 44
    assert not {row["text"] for row in train} & {row["text"] for row in validation}


@pytest.mark.parametrize("module", [bc5cdr, ncbi_disease])
def test_sentences_in_columns(publish, module):
    content = b"Parkinson\tB-Disease\r\n'\tI-Disease\r\nhere\tO\r\n\r\nNone\tO\n\n\n"
    publish(module, dict.fromkeys(("train.tsv", "devel.tsv", "test.tsv"), content))
    expected = [
        {
            "text": "Parkinson ' here",
            "tokens": ["Parkinson", "'", "here"],
            "ner_tags": ["B-Disease", "I-Disease", "O"],
        },
        {"text": "None", "tokens": ["None"], "ner_tags": ["O"]},
    ]
    for split in ("train", "validation", "test"):
        rows = rows_of(module.__name__.rpartition(".")[2], split)
        assert sorted(rows, key=lambda row: len(row["tokens"]), reverse=True) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tO\nb\n", "line 2: expected a word and its tag, not 'b'"),
        ("a\tI-X\n", "line 1: the tag 'I-X'"),
        ("a\tB-X\n\nb\tI-X\n", "line 3: the tag 'I-X'"),
        ("a\tB-X\nb\tI-Y\n", "line 2: the tag 'I-Y'"),
        ("a\tB-\n", "line 1: the tag 'B-'"),
        ("a\tX\n", "line 1: the tag 'X'"),
    ],
)
def test_columns_that_are_no_iob2(tmp_path, content, message):
    (tmp_path / "x.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sentences(tmp_path / "x.tsv")


def test_conll_columns_with_spaces_and_documents(tmp_path):
    (tmp_path / "x.txt").write_text("-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n")
    assert read_sentences(tmp_path / "x.txt") == [
        {"text": "EU rejects", "tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}
    ]


def test_multidogo_leaves_white_space_out_and_begins_slots(publish):
    content = (
        "conversationId\tturnNumber\tutteranceId\tutterance\tslot-labels\tintent\n"
        "c1\t1\tu1\tto new york please\tO city city O\tbook<div>greet\n"
        'c1\t3\tu2\t"erie \n mo smith"\tcity O name name\tcontentonly\n'
        "c2\t1\tu3\t\tO\toutofdomain\n"
    )
    publish(multidogo, {f"{part}.tsv": content.encode() for part in ("train", "dev", "test")})
    first, second = sorted(rows_of("multidogo/media", "validation"), key=lambda row: -len(row))
    first, second = sorted((first, second), key=lambda row: row["intent"])
    assert (first["intents"], first["slots"]) == (["book", "greet"], ["O", "B-city", "I-city", "O"])
    assert (second["text"], second["tokens"]) == ("erie mo smith", ["erie", "mo", "smith"])
    assert second["slots"] == ["B-city", "B-name", "I-name"]


def dialogue(number, words):
    turns = [
        {"speaker": ("user", "assistant")[n % 2], "text": word} for n, word in enumerate(words)
    ]
    return {"conversation_id": f"d{number}", "scenario": "s", "utterances": turns}


def test_coffee_bar_keeps_conversations_of_the_same_words_together(publish):
    published = [dialogue(n, [f"a {n % 50} ", "Here."]) for n in range(100)]
    files = dict.fromkeys(coffee_bar.FILES, b"[]")
    files["data/data_00.json"] = json.dumps(published).encode()
    publish(coffee_bar, files)
    splits = {split: rows_of("coffee_bar", split) for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 100
    said = [{row["messages"][0]["content"] for row in rows} for rows in splits.values()]
    assert sum(map(len, said)) == 50
    row = splits["train"][0]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["messages"][1]["content"] == "Here."


def test_banking77_pairs():
    """Two questions of an intent each; of an odd number one is left over."""
    rows = [
        {"text": text, "label": label} for text, label in zip("abcdexx", "1112222", strict=True)
    ]
    found = banking77.pairs_of(rows)
    assert sorted(row["label"] for row in found) == ["1", "2"]
    for row in found:
        assert row["anchor"] != row["positive"]
        assert {row["anchor"], row["positive"]} <= set("abc" if row["label"] == "1" else "dex")


def test_coffee_bar_preferences():
    """Each good turn beside each bad one for the same context, and none twice."""
    said = {name: [{"role": "assistant", "content": name}] for name in "abcd"}
    judged = [
        {"prompt": [{"role": "user", "content": prompt}], "completion": said[turn], "label": good}
        for prompt, turn, good in [
            *(("x", "a", True), ("x", "b", False), ("x", "c", True), ("x", "a", True)),
            *(("y", "a", True), ("z", "d", False)),
        ]
    ]
    found = coffee_bar.preferred(judged)
    assert [(row["chosen"], row["rejected"]) for row in found] == [
        (said["a"], said["b"]),
        (said["c"], said["b"]),
    ]
    assert {row["prompt"][0]["content"] for row in found} == {"x"}


def test_coffee_bar_rewards(publish):
    call = {"role": "agent", "api": {"get": {"query": "tea"}}}
    answer = {"role": "api", "response": {"get": {"items": []}}}
    context = [{"role": "user", "text": "Tea"}, call, answer]
    published = [
        {
            "conversation_id": "r",
            "context": json.dumps(context[:length]),
            "generation": json.dumps(generation),
            "reward": reward,
        }
        for length, generation, reward in [
            (1, call, 1.0),
            (3, {"role": "agent", "text": "None left."}, 0.0),
        ]
    ]
    for number in range(40):
        other = json.dumps([{"role": "user", "text": f"Order {number}"}])
        published.append({**published[0], "conversation_id": "other", "context": other})
    files = dict.fromkeys(coffee_bar.FILES, b"[]")
    files["reward/reward_03.json"] = json.dumps(published).encode()
    publish(coffee_bar, files)
    rows = rows_of("coffee_bar/rewards", split_by_hash("tea"))
    rows = [row for row in rows if row["conversation"] == "r"]
    good, bad = sorted(rows, key=lambda row: not row["label"])
    called = {"role": "assistant", "content": '{"get": {"query": "tea"}}'}
    assert (good["label"], good["completion"]) == (True, [called])
    assert bad["label"] is False
    assert bad["prompt"] == [
        {"role": "user", "content": "Tea"},
        called,
        {"role": "tool", "content": '{"get": {"items": []}}'},
    ]


def tar_of(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def test_vader_joins_ratings_by_number_and_splits_by_review(publish):
    numbers = [f"{review}_{line}" for review in range(30) for line in (1, 2)]
    means = "".join(f"{n}\t0.5{i:02}\tS&amp;M {n}\r\n" for i, n in enumerate(numbers))
    ratings = "".join(f"{n}\t0.5\t0.1\t[{i}, -4]\r\n" for i, n in enumerate(numbers))
    ratings = "".join(reversed(ratings.splitlines(keepends=True)))
    name = "hutto_ICWSM_2014/amazonReviewSnippets"
    files = {
        "hutto_ICWSM_2014/vaderSentiment.py": b"raise SystemExit",
        f"{name}_anonDataRatings.txt": b"\xef\xbb\xbf" + ratings.encode(),
        f"{name}_GroundTruth.txt": means.encode(),
    }
    publish(vader, {"hutto_ICWSM_2014.tar.gz": tar_of(files)})
    splits = {split: rows_of("vader/products", split) for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 60
    groups = [{row["group"] for row in rows} for rows in splits.values()]
    assert sum(map(len, groups)) == 30
    for row in splits["train"]:
        number = row["text"].removeprefix("S&M ")
        assert row["ratings"] == [numbers.index(number), -4]
        assert row["label"] == ("neutral" if number == "0_1" else "positive")
    for split, rows in splits.items():
        polar = {row["text"]: row for row in rows_of("vader/products_polar", split)}
        assert polar == {row["text"]: row for row in rows if row["label"] != "neutral"}


@pytest.mark.parametrize(
    ("rating", "label"),
    [(-0.51, "negative"), (-0.5, "neutral"), (0.5, "neutral"), (0.501, "positive")],
)
def test_labels_of_ratings(rating, label):
    assert vader.label_of(rating) == label


def link(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def test_an_archive_is_read_and_never_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar_of({"../outside": b"1", "/absolute": b"2", "a/b.txt": b"3"}))
    assert read_tar_members(path, ["a/b.txt", "../outside"]) == {
        "a/b.txt": b"3",
        "../outside": b"1",
    }
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="holds no file c"):
        read_tar_members(path, ["a/b.txt", "c"])
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link("a"))
    with pytest.raises(ValueError, match="holds no file a"):
        read_tar_members(tmp_path / "link.tar", ["a"])
    monkeypatch.setattr(archives, "LARGEST_MEMBER_BYTES", 2)
    with pytest.raises(ValueError, match="announces more than 2 bytes"):
        read_tar_members(path, ["a/b.txt"])


@pytest.mark.parametrize(
    "content", [b"", b"no archive", tar_of({"a": bytes(9999)})[:-40]], ids=["empty", "text", "cut"]
)
def test_a_damaged_archive(tmp_path, content):
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.tar.gz (cannot be read as a tar archive|holds no)"):
        read_tar_members(tmp_path / "x.tar.gz", ["a", "b"])


def test_every_builder_says_whose_the_data_is():
    for name in builders.builder_names():
        builder = builders.find_builder(name)
        assert builder.name == name
        assert builder.VERSION
    for module in (mts_dialog, banking77, bc5cdr, ncbi_disease, multidogo, vader, coffee_bar):
        builder = builders.find_builder(module.__name__.rpartition(".")[2])
        assert builder.LICENSE
        assert builder.HOMEPAGE.startswith("https://")
        assert builder.CITATION.startswith("@")


def test_a_dataset_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "three_rows.py").write_text(
        "import tensorflow_datasets as tfds\n"
        "from ftjax.data.rows_builder import RowsBuilder\n"
        "class ThreeRows(RowsBuilder, skip_registration=True):\n"
        "    VERSION = tfds.core.Version('1.0.0')\n"
        "    def features(self):\n"
        "        return {'text': tfds.features.Text()}\n"
        "    def splits(self):\n"
        "        return {'train': [{'text': word} for word in 'abc']}\n"
    )
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builders, "__path__", [*builders.__path__, str(tmp_path)])
    assert sorted(row["text"] for row in rows_of("three_rows", "train")) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="has no config 'x'; it has: none"):
        open_dataset("three_rows/x")


COUNTS = {
    "mts_dialog": (1201, 100, 200, 200),
    "coffee_bar": 3710,
    "coffee_bar/rewards": 3228,
    "coffee_bar/preferences": 617,
    "banking77": 13083,
    "banking77/pairs": 6496,
    "bc5cdr": (4560, 4581, 4797),
    "ncbi_disease": (5424, 923, 940),
    "vader/tweets": 4200,
    "vader/films": 10605,
    "vader/newspaper": 5190,
    "vader/products": 3708,
    "vader/products_polar": 2943,
}
SENTIMENT = {
    "vader/tweets": (1062, 2300),
    "vader/films": (5061, 4982),
    "vader/newspaper": (1688, 1100),
    "vader/products": (1218, 1725),
}


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    if not (MIRROR / "raw.githubusercontent.com").is_dir():
        pytest.skip("FTJAX_MIRROR names no mirror of the public data, and ../shared/data is none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTJAX_MIRROR", str(MIRROR))
        patch.setenv("FTJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", [*COUNTS, "multidogo/media"])
def test_the_published_files(mirrored, name):
    dataset, _, config = name.partition("/")
    builder = builders.find_builder(dataset)
    splits = builder(config=config or None, data_dir=os.environ["FTJAX_CACHE"]).splits()
    expected = COUNTS.get(name, (11937, 1689, 3399))
    counts = tuple(len(rows) for rows in splits.values())
    assert (counts if isinstance(expected, tuple) else sum(counts)) == expected
    assert all(counts)
    rows = [row for part in splits.values() for row in part]
    if name == "mts_dialog":
        assert len({row["section_header"] for row in splits["train"]}) == 20
    if name == "banking77":
        assert counts == (9000, 1003, 3080)
        assert all(len({row["label"] for row in part}) == 77 for part in splits.values())
    if name == "coffee_bar":
        roles = collections.Counter(m["role"] for row in rows for m in row["messages"])
        assert roles["assistant"] == 6920
    if name == "coffee_bar/rewards":
        assert sum(not row["label"] for row in rows) == 453
        judged = collections.defaultdict(set)
        for row in rows:
            judged[json.dumps(row["prompt"])].add(row["label"])
        assert sum(len(labels) == 2 for labels in judged.values()) == 220
    if name in SENTIMENT:
        labels = collections.Counter(row["label"] for row in rows)
        assert (labels["negative"], labels["positive"]) == SENTIMENT[name]
