"""Sources without splits: shares, classes, groups, duplicates, samples, plain texts."""

import csv
import json
import random
from collections import Counter

import numpy as np
import pytest

from ftjax.data.sources import Division, Source, load_records
from ftjax.data.sources.plain_text import divide_text
from ftjax.data.sources.splitting import cuts

FIELDS = {"text": "text", "label": "label"}
SPLITS = ("train", "validation", "test")


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def divided(source, **how):
    source = Source(source, Division(**how))
    return {split: source.records(split, FIELDS) for split in SPLITS}, source


def labels(records):
    return Counter(record["label"] for record in records)


@pytest.fixture
def sorted_by_label(tmp_path):
    rows = [{"text": f"text {n}", "label": "a" if n < 900 else "b"} for n in range(1000)]
    return write_csv(tmp_path / "all.csv", rows)


def test_every_record_is_in_one_split_and_every_class_has_its_share(sorted_by_label):
    parts, source = divided(sorted_by_label)
    assert [labels(part) for part in parts.values()] == [
        {"a": 720, "b": 80},
        {"a": 90, "b": 10},
        {"a": 90, "b": 10},
    ]
    texts = [record["text"] for part in parts.values() for record in part]
    assert sorted(texts) == sorted(f"text {n}" for n in range(1000))
    (note,) = source.notes
    assert "divided 80 : 10 : 10 at random, each class in its share: train 800" in note


def test_so_many_of_each_class(sorted_by_label):
    source = Source(sorted_by_label)
    found = source.records("", FIELDS, shots=7)
    assert labels(found) == {"a": 7, "b": 7} and source.drawn
    numbers = [int(record["text"].split()[1]) for record in found]
    assert numbers == sorted(set(numbers)) and max(numbers[:7]) > 100
    again, other = (
        Source(sorted_by_label, Division(seed=seed)).records("", FIELDS, shots=7) for seed in (0, 1)
    )
    assert again.fingerprint == found.fingerprint != other.fingerprint
    # Of a class that has fewer, all; and where that leaves nothing out, nothing is drawn.
    assert labels(source.records("", FIELDS, shots=200)) == {"a": 200, "b": 100}
    source = Source(sorted_by_label)
    assert len(source.records("", FIELDS, shots=900)) == 1000 and not source.drawn


def test_the_seed_decides_and_nothing_else(sorted_by_label):
    def test_texts(seed):
        return [r["text"] for r in divided(sorted_by_label, seed=seed)[0]["test"]]

    assert test_texts(0) == test_texts(0)
    assert len(set(test_texts(0)) & set(test_texts(1))) < 40
    numbers = [int(text.split()[1]) for text in test_texts(0)]
    assert numbers == sorted(numbers)


def test_shares_of_ones_own(sorted_by_label):
    parts, _ = divided(sorted_by_label, shares=(0.5, 0.2, 0.3))
    assert [len(part) for part in parts.values()] == [500, 200, 300]


def test_many_small_classes_add_up_to_the_shares(tmp_path):
    rows = [
        {"text": f"{label} {n}", "label": f"class {label}"} for label in range(77) for n in "abc"
    ]
    parts, _ = divided(write_csv(tmp_path / "all.csv", rows))
    assert len(labels(parts["train"])) == 77
    assert [len(part) for part in parts.values()] == pytest.approx([185, 23, 23], abs=2)


def test_equal_texts_stay_together(tmp_path):
    rng = random.Random(0)
    rows = [{"text": f"text {rng.randrange(50)}", "label": rng.choice("ab")} for _ in range(400)]
    parts, _ = divided(write_csv(tmp_path / "all.csv", rows))
    texts = [{record["text"] for record in part} for part in parts.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert len(parts["train"]) == pytest.approx(320, abs=20)


def test_groups_stay_together_also_over_equal_texts(tmp_path):
    rows = [
        {"text": f"text {n}", "label": "ab"[n % 2], "patient": f"p{n // 5}"} for n in range(200)
    ]
    # The last patient of all says what the first one says.
    rows[-1]["text"] = rows[0]["text"]
    parts, source = divided(write_csv(tmp_path / "all.csv", rows), group_field="patient")
    where = {}
    for split, part in parts.items():
        assert set(part[0]) == {"text", "label"}
        for index in range(len(part)):
            line = int(part.where(index).rpartition(" ")[2])
            where[line] = split
    patients = [{split for line, split in where.items() if (line - 2) // 5 == p} for p in range(40)]
    assert all(len(splits) == 1 for splits in patients)
    assert patients[0] == patients[39]
    assert "by patient" in source.notes[0]


def test_a_record_says_its_own_line_wherever_it_went(sorted_by_label):
    for part in divided(sorted_by_label)[0].values():
        for index, record in enumerate(part):
            line = int(record["text"].split()[1]) + 2
            assert part.where(index) == f"{sorted_by_label}, line {line}"


def test_labels_that_are_numbers_of_their_own_are_no_classes(tmp_path):
    rows = [{"text": f"text {n}", "label": n / 7} for n in range(100)]
    parts, _ = divided(write_csv(tmp_path / "all.csv", rows))
    assert [len(part) for part in parts.values()] == [80, 10, 10]


def test_a_limit_draws_each_class_in_its_share(sorted_by_label):
    records = load_records(sorted_by_label, split="", fields=FIELDS, limit=100)
    assert labels(records) == {"a": 90, "b": 10}
    texts = [record["text"] for record in records]
    assert texts != [f"text {n}" for n in range(100)]
    again = load_records(sorted_by_label, split="", fields=FIELDS, limit=100)
    assert records.fingerprint == again.fingerprint
    # Of few, each class one at least.
    few = load_records(sorted_by_label, split="", fields=FIELDS, limit=2)
    assert labels(few) == {"a": 1, "b": 1}
    assert len(load_records(sorted_by_label, split="", fields=FIELDS, limit=5000)) == 1000


def test_a_missing_validation_split_is_taken_from_train(tmp_path):
    for split, count in (("train", 90), ("test", 20)):
        rows = [{"text": f"{split} {n}", "label": "ab"[n % 2]} for n in range(count)]
        write_csv(tmp_path / f"{split}.csv", rows)
    for reference in (str(tmp_path), str(tmp_path / "{split}.csv")):
        parts, source = divided(reference, fill=True)
        assert [len(part) for part in parts.values()] == [80, 10, 20]
        assert all(record["text"].startswith("train") for record in parts["validation"])
        assert f"{reference} has no validation; train is divided 89 : 11" in source.notes[0]
        # A split that someone named is not made up.
        with pytest.raises((ValueError, FileNotFoundError), match="challenge"):
            Source(reference, Division(("train", "challenge", "test"), fill=True)).records(
                "challenge", FIELDS
            )
        assert len(load_records(reference, split="train", fields=FIELDS)) == 90


def test_files_with_all_splits_are_not_divided(tmp_path):
    for split, count in (("train", 9), ("dev", 5), ("test", 7)):
        write_csv(tmp_path / f"{split}.csv", [{"text": str(n), "label": "a"} for n in range(count)])
    parts, source = divided(str(tmp_path), fill=True)
    assert [len(part) for part in parts.values()] == [9, 5, 7]
    assert not source.divided
    assert source.notes == [f"validation is what {tmp_path} calls dev."]


def test_cuts_leave_nothing_empty():
    assert cuts(20, (0.8, 0.1, 0.1)) == [0, 16, 18, 20]
    for count in range(3, 60):
        at = cuts(count, (0.8, 0.1, 0.1))
        assert at[0] == 0 and at[-1] == count and np.all(np.diff(at) >= 1)
        assert at[1] == pytest.approx(0.8 * count, abs=1.5)


WORDS = [f"word{n}" for n in range(500)]


@pytest.mark.parametrize(
    ("text", "between"),
    [
        ("\n".join(" ".join(WORDS[n : n + 8]) for n in range(60)), "lines"),
        (" ".join(WORDS), "words"),
        (". ".join(WORDS) + ".", "sentences"),
        ("这是一句话。" * 30, "sentences"),
        ("字" * 100, "characters"),
        ("\r\r".join(WORDS[:60]), None),
        ("\r\n\r\n".join(WORDS[:60]), None),
        *[
            ("\n\n".join(" ".join(WORDS[n : n + 20]) for n in range(k)), "words")
            for k in range(2, 8)
        ],
        ("\n\n".join(WORDS[:12]), None),
    ],
)
def test_a_text_of_any_shape_gives_three_splits(tmp_path, text, between):
    (tmp_path / "my.txt").write_bytes(text.encode())
    source = Source(str(tmp_path / "my.txt"), Division(fill=True))
    parts = [source.records(split, {"text": "text"}) for split in SPLITS]
    characters = [sum(len(r["text"]) for r in part) for part in parts]
    assert characters[0] == pytest.approx(0.8 * sum(characters), rel=0.12)
    assert min(characters) > 0.05 * sum(characters)
    whole = "".join("".join(r["text"] for r in part) for part in parts)
    assert "".join(whole.split()) == "".join(text.split())
    assert any(f"divided between {between}" in note for note in source.notes) == bool(between)


@pytest.mark.parametrize("text", ["", "  \n", "too few", "two long-ish words", "字字字"])
def test_too_little_text_is_one_sentence(tmp_path, text):
    (tmp_path / "my.txt").write_text(text)
    with pytest.raises(ValueError, match=r"my.txt has \d+ words, too few to be divided"):
        load_records(str(tmp_path / "my.txt"), split="train", fields={"text": "text"})


def test_a_paragraph_knows_its_line():
    parts, _ = divide_text("\n\n".join(f"{n}\nmore" for n in range(20)), "my.txt", (0.8, 0.1, 0.1))
    assert parts[1].where(0) == "my.txt, line 49"
    assert parts[1][0]["text"] == "16\nmore"


def test_a_text_needs_no_column_of_another_name(tmp_path):
    (tmp_path / "my.txt").write_text("\n\n".join(WORDS))
    with pytest.raises(ValueError, match=r"no field 'label' \(it has: text\)"):
        load_records(str(tmp_path / "my.txt"), split="train", fields=FIELDS)


def test_jsonl_is_divided_too(tmp_path):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(50)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts, _ = divided(str(tmp_path / "all.jsonl"))
    assert [len(part) for part in parts.values()] == [40, 5, 5]
