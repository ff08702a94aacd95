"""Labels of data beside the classes of a published head."""

import pytest

from ftjax.data.labels import in_order_of


@pytest.mark.parametrize(
    ("names", "published", "expected"),
    [
        (["a", "b", "c"], ["c", "a", "b"], ["c", "a", "b"]),
        (["NEGATIVE", "positive"], ["Positive", "negative "], ["positive", "NEGATIVE"]),
        # A class of the head without an example stays.
        (["a", "b"], ["b", "neutral", "a"], ["b", "neutral", "a"]),
        (["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"]),
        (["2", "0"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"]),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], ["LABEL_0", "LABEL_1"]),
        # What cannot be told.
        (["ham", "spam"], ["LABEL_0", "LABEL_1"], None),
        (["0", "1"], ["negative", "positive"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["A", "a"], ["a", "b"], None),
        (["a", "b"], ["a", "A", "b"], None),
        (["3", "0"], ["LABEL_0", "LABEL_1"], None),
    ],
)
def test_classes_in_the_order_of_a_head(names, published, expected):
    assert in_order_of(names, published) == expected
