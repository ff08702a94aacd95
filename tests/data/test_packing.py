import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax.data.examples import PackedExamples
from ftjax.data.packing import best_fit_decreasing, pack
from ftjax.data.text import TokenizedText


def tokens_of(lengths):
    """Texts whose tokens are all different: 1, 2, 3, ..."""
    total = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenizedText(np.arange(1, total + 1, dtype=np.int32), offsets, None, 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(2, 16))
def test_every_token_once_in_order_within_its_text(lengths, length):
    tokens = tokens_of(lengths)
    packed = pack(tokens, length)
    real = packed.segment_ids > 0
    assert sorted(packed.input_ids[real]) == list(range(1, sum(lengths) + 1))
    text_of = np.searchsorted(tokens.offsets, packed.input_ids - 1, side="right")
    for row in range(len(real)):
        for segment in range(1, packed.segment_ids[row].max(initial=0) + 1):
            here = packed.segment_ids[row] == segment
            ids = packed.input_ids[row][here]
            np.testing.assert_array_equal(np.diff(ids), 1)
            assert len(set(text_of[row][here])) == 1
            np.testing.assert_array_equal(packed.position_ids[row][here], np.arange(len(ids)))


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(2, 16))
def test_each_token_but_the_first_of_a_piece_is_predicted_once(lengths, length):
    packed = pack(tokens_of(lengths), length)
    rows = len(packed.input_ids)
    batch = PackedExamples(packed, "").batch(np.arange(rows), rows=rows + 3, length=length)
    predicted = batch["weights"] > 0
    np.testing.assert_array_equal(batch["labels"][predicted], batch["input_ids"][predicted] + 1)
    pieces = sum(-(-n // length) for n in lengths)
    assert predicted.sum() == sum(lengths) - pieces
    assert (batch["example_ids"] >= 0).sum() == len(packed.input_ids)


def test_rows_are_filled():
    packed = pack(tokens_of([3, 5, 4, 2, 2]), 8)
    assert len(packed.input_ids) == 2
    assert (packed.segment_ids > 0).all()


def test_nothing_to_pack():
    packed = pack(tokens_of([]), 8)
    assert packed.input_ids.shape == (0, 8)


def test_a_hundred_thousand_texts_take_no_quadratic_time():
    lengths = np.random.default_rng(0).integers(1, 200, 100_000)
    packed = pack(tokens_of(lengths), 256)
    filled = (packed.segment_ids > 0).mean()
    assert filled > 0.97
    assert packed.segment_ids.max() > 1


@pytest.mark.parametrize("missing", [0, 3])
def test_rows_that_only_fill_up_have_no_weight(missing):
    packed = pack(tokens_of([4, 4]), 4)
    batch = PackedExamples(packed, "").batch(np.arange(2), rows=2 + missing, length=4)
    assert batch["weights"][2:].sum() == 0
    np.testing.assert_array_equal(batch["example_ids"], [0, 1] + [-1] * missing)


@settings(deadline=None)
@given(st.lists(st.integers(1, 16), max_size=80), st.integers(16, 20))
def test_best_fit_puts_each_piece_once_where_there_is_room(sizes, length):
    rows = best_fit_decreasing(np.asarray(sizes, int), length)
    assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
    used = [sum(sizes[piece] for piece in row) for row in rows]
    assert max(used, default=0) <= length
    # No row but one is less than half full, else two would have been one.
    assert sum(2 * tokens <= length for tokens in used) <= 1


def test_best_fit_takes_the_fullest_row_that_has_room():
    assert best_fit_decreasing(np.asarray([3, 7, 2, 5, 1]), 8) == [[1, 4], [3, 0], [2]]
    sizes = np.random.default_rng(0).integers(1, 600, 100_000)
    rows = best_fit_decreasing(sizes, 1024)
    assert sizes.sum() / (1024 * len(rows)) > 0.999
