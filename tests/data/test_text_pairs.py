"""Pairs as SetFit draws them: how many, which, and always the same."""

import itertools
from collections import Counter

import numpy as np
import pytest

from ftjax.data.examples import TextExamples, plan
from ftjax.data.text import TokenizedText
from ftjax.data.text_pairs import SAMPLINGS, TextPairs, draw_pairs, pair_counts

LABELS = np.array([0, 1, 0, 2, 1, 0, 0, 2, 1], np.int32)


def counted(sampling, num_iterations=None, seed=0, epoch=0):
    """How often each pair comes, by whether it is of one class."""
    pairs, alike = draw_pairs(LABELS, sampling, num_iterations, seed, epoch)
    assert pairs.shape == (len(alike), 2) and alike.dtype == np.float32
    found = ({}, {})
    for kind in (0, 1):
        found[kind].update(Counter(map(tuple, pairs[alike == kind].tolist())))
    return found


def all_pairs():
    every = list(itertools.combinations(range(len(LABELS)), 2))
    return tuple({p for p in every if (LABELS[p[0]] == LABELS[p[1]]) == kind} for kind in (0, 1))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_which_pairs(sampling):
    """Of 4, 3 and 2 texts: 6 + 3 + 1 pairs of one class, 12 + 8 + 6 of two."""
    others, alike = counted(sampling)
    assert [len(kind) for kind in all_pairs()] == [26, 10]
    wanted = {"unique": (26, 10), "oversampling": (26, 26), "undersampling": (10, 10)}[sampling]
    assert (sum(others.values()), sum(alike.values())) == wanted
    assert pair_counts([4, 3, 2], sampling, None) == wanted[::-1]
    assert others.keys() <= all_pairs()[0] and max(others.values()) == 1
    # 26 of 10 pairs: each twice, and six of them a third time.
    repeats = {"unique": [1], "oversampling": [2, 3], "undersampling": [1]}[sampling]
    assert alike.keys() == all_pairs()[1] and sorted(set(alike.values())) == repeats


def test_so_many_for_each_text():
    for number, repeats in ((1, (1, 1)), (5, (2, 5))):
        others, alike = counted("unique", number)
        assert sum(others.values()) == sum(alike.values()) == 9 * number
        assert (max(others.values()), max(alike.values())) == repeats


def test_an_epoch_has_its_own_and_always_the_same():
    def drawn(seed, epoch):
        return draw_pairs(LABELS, "undersampling", None, seed, epoch)[0].tolist()

    assert drawn(0, 1) == drawn(0, 1)
    different = [drawn(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(different, 2))
    # Both kinds in turn, so that no batch of the first few is of one kind.
    _, alike = draw_pairs(LABELS, "unique", None, 0, 0)
    assert alike.tolist() == [1, 0] * 10 + [0] * 16


def test_a_row_has_both_texts():
    sizes = [3, 7, 2, 5]
    offsets = np.cumsum([0, *sizes])
    tokens = TokenizedText(np.arange(1, 1 + offsets[-1], dtype=np.int32), offsets, None, 0)
    texts = TextExamples(tokens, (4, 8), 0, "print")
    pairs = TextPairs(
        texts, np.array([[0, 1], [2, 3], [1, 1]]), np.array([1.0, 0.0, 1.0], np.float32)
    )
    assert pairs.lengths.tolist() == [10, 7, 14] and pairs.buckets == [4, 8, 16]
    assert sorted(p.length for p in plan(pairs, 1)) == [8, 16, 16]
    batch = pairs.batch(np.array([1, 0]), rows=3, length=16)
    assert batch["input_ids"][0].tolist() == [11, 12, *range(13, 18)] + [0] * 9
    assert batch["segment_ids"][1].tolist() == [1] * 3 + [2] * 7 + [0] * 6
    assert batch["position_ids"][1].tolist() == [0, 1, 2, *range(7)] + [0] * 6
    assert batch["labels"].tolist() == [0.0, 1.0, 0.0]
    assert batch["weights"].tolist() == [1.0, 1.0, 0.0]
    assert batch["example_ids"].tolist() == [[2, 3], [0, 1], [-1, -1]]
    assert pairs.fingerprint == "print"
