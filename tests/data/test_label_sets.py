"""Sets of labels in all the ways in which files hold them."""

import numpy as np
import pytest

from ftjax.data.label_sets import (
    describe_label_sets,
    encode_label_columns,
    encode_label_sets,
    encode_label_vector,
)


def records(*labels):
    return [{"label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        ((["b", "a"], [], ["c"]), None),
        (('["b", "a"]', "[]", "['c']"), None),
        (("b|a", "", "c"), "|"),
        ((" a ; b;", ";", "c;c"), ";"),
        ((("a", "b"), (), ("c",)), None),
    ],
)
def test_one_meaning_of_many_forms(labels, separator):
    found, classes = encode_label_sets(records(*labels), separator=separator)
    assert classes == ["a", "b", "c"]
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert found.dtype == np.int32


def test_names_are_those_of_classification():
    found, classes = encode_label_sets(records([1, "2.0"], ["caf\u00e9"], ["cafe\u0301", 2]))
    assert classes == ["1", "2", "caf\u00e9"]
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 0, 1], [0, 1, 1]])


def test_known_classes_give_the_places():
    found, classes = encode_label_sets(records(["c"], []), ["a", "b", "c"])
    assert classes == ["a", "b", "c"]
    np.testing.assert_array_equal(found, [[0, 0, 1], [0, 0, 0]])


def test_a_single_label_may_be_there_or_not():
    found, classes = encode_label_sets(records(["unfair"], []))
    assert (found.tolist(), classes) == ([[1], [0]], ["unfair"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((["a"], "a|b"), r"record 2: the label is 'a\|b', which is no list. .*such as '\|'"),
        (("a",), "record 1: the label is 'a', which is no list.*objective 'classification'"),
        ((3,), "record 1: the label is 3, which is no list"),
        (([], []), "no record has a label"),
        ((["a"], ["a", " "]), "record 2: .*each of its parts must be a name or a number"),
        ((["a", ["b"]],), "record 1: .*each of its parts"),
        (([0, 1, 0], [1, 0, 0]), "names a label twice. If it holds a 0 or 1 for each label"),
        (([0.0, 1.0],), "record 1: .*label_format = 'zeros_and_ones'"),
        (([True, False],), "record 1: .*label_format = 'zeros_and_ones'"),
        (("[a, b",), "which is no list"),
    ],
)
def test_what_is_no_set_of_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        encode_label_sets(records(*labels))


def test_a_label_never_seen_in_training():
    with pytest.raises(ValueError, match=r"record 2: the label 'd' was never seen .*known: a, b"):
        encode_label_sets(records(["a"], ["d"]), ["a", "b"])


def test_a_place_for_each_label():
    rows = records([0, 1, 1], [0.0, 0.0, 0.0], [True, False, False], "[1, 0, 1]")
    found = encode_label_vector(rows, ["a", "b", "c"])
    np.testing.assert_array_equal(found, [[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 1]])
    for wrong in ([0, 1], [0, 1, 2], [0, 1, "x"], "0|1|1", None):
        with pytest.raises(ValueError, match=r"record 1: .*(zeros and ones|0 or 1) "):
            encode_label_vector(records(wrong), ["a", "b", "c"])


def test_a_column_for_each_label():
    rows = [{"x": "0", "y": 1}, {"x": True, "y": "1.0"}, {"x": 0.0, "y": "0"}]
    found = encode_label_columns(rows, {"x": "toxic", "y": "insult"})
    np.testing.assert_array_equal(found, [[0, 1], [1, 1], [0, 0]])
    for wrong in (2, "yes", "", 0.5, None):
        with pytest.raises(ValueError, match=r"record 1: toxic is .*; 0 or 1 is needed"):
            encode_label_columns([{"x": wrong, "y": 0}], {"x": "toxic", "y": "insult"})


def test_what_a_person_is_told():
    labels = np.array([[1, 1], [0, 0], [1, 0]])
    told = "a 2, b 1; 1 without a label, 1 with several"
    assert describe_label_sets(labels, ["a", "b"]) == told
    many = np.eye(20, dtype=int)
    assert "20 labels, from l0 1 to l0 1;" in describe_label_sets(
        many, [f"l{n}" for n in range(20)]
    )
