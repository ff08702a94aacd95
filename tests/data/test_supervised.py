"""Rows of texts of which a part is learned."""

import numpy as np
import pytest

from ftjax.data.examples import PackedExamples
from ftjax.data.packing import pack
from ftjax.data.supervised import STRATEGIES, SupervisedExamples, SupervisedText, fill_rows
from ftjax.data.text import TokenizedText


def text_of(*flags):
    """Texts whose tokens are 1, 2, ..., learned where a flag is 1."""
    learned = np.concatenate([np.asarray(list(map(int, one)), bool) for one in flags])
    offsets = np.cumsum([0, *map(len, flags)])
    ids = np.arange(1, len(learned) + 1, dtype=np.int32)
    return SupervisedText(ids, offsets, learned, np.full(len(ids), 3, np.int32))


def examples_of(text, length, strategy):
    pieces, rows = fill_rows(text, length, strategy)
    return SupervisedExamples(text, pieces, rows, (length,), "")


def test_a_batch():
    examples = examples_of(text_of("0011", "011", "01"), 7, "bfd")
    batch = examples.batch(np.asarray([1, 0]), rows=3, length=7)
    expected = {
        "input_ids": [[8, 9, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7], [0] * 7],
        "segment_ids": [[1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 2, 2, 2], [0] * 7],
        "position_ids": [[0, 1, 0, 0, 0, 0, 0], [0, 1, 2, 3, 0, 1, 2], [0] * 7],
        "labels": [[9, 0, 0, 0, 0, 0, 0], [2, 3, 4, 0, 6, 7, 0], [0] * 7],
        "weights": [[1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1, 0], [0] * 7],
        "example_ids": [1, 0, -1],
    }
    assert {name: array.tolist() for name, array in batch.items()} == expected
    assert examples.lengths.tolist() == [7, 2]
    assert examples.predicted_bytes == 3 * 5
    assert examples.share_supervised == pytest.approx(5 / 9)
    assert sorted(examples.token_ids()) == list(range(1, 10))


def test_all_learned_is_as_a_language_model_has_it():
    text = text_of("11111", "111", "1111")
    tokens = TokenizedText(text.input_ids, text.offsets, None, 0)
    theirs = PackedExamples(pack(tokens, 12), "").batch(np.arange(1), rows=2, length=12)
    ours = SupervisedExamples(text, fill_rows(text, 12, None)[0], [[0, 1, 2]], (12,), "")
    batch = ours.batch(np.arange(1), rows=2, length=12)
    assert batch.keys() == theirs.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(array, theirs[name])
        assert array.dtype == theirs[name].dtype


def pieces_of(strategy, *flags, length=4):
    pieces, rows = fill_rows(text_of(*flags), length, strategy)
    return [[pieces[piece].tolist() for piece in row] for row in rows]


def test_what_is_longer_than_a_row():
    flags = ("001111", "01", "0000001")
    assert pieces_of(None, *flags) == [[[0, 4]], [[6, 8]], [[8, 12]]]
    assert pieces_of("bfd", *flags) == [[[0, 4]], [[8, 12]], [[6, 8]]]
    # Of the last text, the first piece teaches nothing.
    assert pieces_of("bfd_split", *flags) == [[[0, 4]], [[12, 15]], [[4, 6], [6, 8]]]
    assert pieces_of("wrapped", *flags) == [
        [[0, 4]],
        [[4, 6], [6, 8]],
        [[8, 12]],
        [[12, 15]],
    ]


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_one_text_and_rows_that_it_fills(strategy):
    assert pieces_of(strategy, "0111") == [[[0, 4]]]
    assert pieces_of(strategy, "01") == [[[0, 2]]]


def test_shares():
    text = text_of("0011", "111", "0")
    assert text.shares.tolist() == [0.5, 1.0, 0.0]
    assert text.predicted(np.asarray([0, 3, 4])).tolist() == [0, 0, 1, 0, 0, 1, 1, 0]
