import numpy as np
import pytest

from ftjax.evaluation.entities import entities, entity_report, is_iob2


def test_an_entity_begins_goes_on_and_ends():
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC"]
    assert entities([tags]) == {(0, "PER", 0, 2), (0, "LOC", 3, 4), (0, "LOC", 4, 6)}


@pytest.mark.parametrize(
    "tags", [["I-PER", "I-PER"], ["O", "I-PER"], ["I-LOC", "O"], [], ["O"]], ids="-".join
)
def test_what_did_not_begin_is_no_entity(tags):
    assert entities([tags]) == set()


def test_another_type_ends_an_entity_and_begins_none():
    assert entities([["B-PER", "I-LOC", "I-LOC"]]) == {(0, "PER", 0, 1)}


def test_the_same_place_in_another_sentence_is_another_entity():
    truth, said = [["B-A"], ["O"]], [["O"], ["B-A"]]
    assert entity_report(truth, said)[""]["f1"] == 0.0


def test_scores_by_hand():
    truth = [["B-A", "I-A", "O", "B-B"]]
    said = [["B-A", "O", "O", "B-B"]]
    report = entity_report(truth, said)
    assert report["A"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert report["B"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert report[""] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}


def test_nothing_there_and_nothing_said():
    assert entity_report([["O"]], [["O"]]) == {
        "": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    }


def spans_by_brute_force(tags):
    """Every stretch that begins with B, goes on with I of its type, and cannot be longer."""
    found = set()
    for start in range(len(tags)):
        for end in range(start + 1, len(tags) + 1):
            name = tags[start][2:]
            whole = tags[start] == f"B-{name}" and set(tags[start + 1 : end]) <= {f"I-{name}"}
            if whole and (end == len(tags) or tags[end] != f"I-{name}"):
                found.add((name, start, end))
    return found


def test_random_sentences():
    random = np.random.default_rng(0)
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    for _ in range(1000):
        tags = random.choice(names, random.integers(1, 9)).tolist()
        assert {found[1:] for found in entities([tags])} == spans_by_brute_force(tags)


def test_iob2_by_form():
    assert is_iob2(["O", "B-PER", "I-a-b"])
    assert not is_iob2(["O", "NOUN"]) and not is_iob2(["B-"])
