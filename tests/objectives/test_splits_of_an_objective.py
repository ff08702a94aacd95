"""What an objective makes of a source: division, samples, and what a person is told."""

import csv
from pathlib import Path

import pytest
from tiny import WORDS

from ftjax.config import override, validate
from ftjax.objectives.classification import Classification


@pytest.fixture
def one_file(tmp_path):
    path = tmp_path / "my.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["text", "label", "who"])
        for n in range(120):
            writer.writerow([f"{WORDS[n % 60]} {WORDS[n // 60]}", "ab"[n >= 60], f"p{n // 4}"])
    return str(path)


def read(config, **changes):
    config = override(config, {name.replace("__", "."): value for name, value in changes.items()})
    validate(config)
    objective = Classification(config, Path(config.model.reference))
    objective.read()
    return objective


def test_one_file_is_all_that_is_needed(tiny_config, one_file):
    objective = read(tiny_config, data__source=one_file)
    assert [len(e.lengths) for e in objective.examples.values()] == [96, 12, 12]
    assert objective.notes[0] == f"{one_file}: its cells are separated by semicolons."
    assert "divided 80 : 10 : 10 at random, each class in its share" in objective.notes[1]
    assert "(a 48, b 48)" in objective.notes[2]


def test_the_seed_of_the_run_changes_no_split(tiny_config, one_file):
    prints = [
        {name: e.fingerprint for name, e in read(tiny_config, **changes).examples.items()}
        for changes in (
            {"data__source": one_file},
            {"data__source": one_file, "seed": 5},
            {"data__source": one_file, "data__split_seed": 5},
        )
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_limit_sees_all_classes_of_a_sorted_file(tiny_config, one_file):
    objective = read(tiny_config, data__source=one_file, data__train_limit=10)
    assert objective.labels["train"].tolist() == [0] * 5 + [1] * 5
    assert len(objective.examples["test"].lengths) == 12


def test_groups(tiny_config, one_file):
    objective = read(tiny_config, data__source=one_file, data__group_field="who")
    assert "by who" in " ".join(objective.notes)
    with pytest.raises(ValueError, match=r"no field 'whom' .*Set group_field"):
        read(tiny_config, data__source=one_file, data__group_field="whom")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__shares": (0.5, 0.2, 0.3)}, "data.shares divide a source without splits"),
        ({"data__group_field": "text"}, "data.group_field and config.data.shares divide"),
        ({"data__split_seed": 3}, "split_seed = 3 changes nothing: nothing is drawn"),
        ({"data__split_seed": 3, "data__train_limit": 10**6}, "split_seed = 3 changes nothing"),
        ({"data__shares": (0.5, 0.2, 0.2)}, "must be three numbers that sum to 1"),
        ({"data__shares": (0.5, 0.5)}, "must be three numbers that sum to 1"),
    ],
)
def test_what_would_change_nothing_is_refused(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        read(tiny_config, **changes)


def test_equal_records_of_two_splits_are_counted(tiny_config, tmp_path):
    for split, numbers in (("train", range(30)), ("validation", (3, 40)), ("test", (3, 4, 50, 51))):
        with open(tmp_path / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([WORDS[n], "ab"[n % 2]] for n in numbers)
    objective = read(tiny_config, data__source=str(tmp_path))
    told = [note for note in objective.notes if "exactly like" in note]
    assert [note.partition(" records")[0] for note in told] == [
        "validation: 1 of 2",
        "test: 2 of 4",
    ]


def test_a_record_is_named_by_its_line_after_division(tiny_config, tmp_path, one_file):
    lines = Path(one_file).read_text(encoding="utf-8").splitlines()
    lines[77] = f"{WORDS[0]};;p1"
    (tmp_path / "broken.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.csv, line 78: the label is ''"):
        read(tiny_config, data__source=str(tmp_path / "broken.csv"))
