import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax.data.batching import plan_batches
from ftjax.data.examples import TextExamples
from ftjax.data.text import TokenizedText

BUCKETS = st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True).map(sorted)


def plans_of(lengths, buckets, **settings):
    settings = {"batch_size": 4, "seed": 0, "epoch": 0, "shuffle": True} | settings
    return plan_batches(np.asarray(lengths, int), buckets=buckets, **settings)


@st.composite
def cases(draw):
    buckets = draw(BUCKETS)
    lengths = draw(st.lists(st.integers(0, buckets[-1]), max_size=80))
    return lengths, buckets, draw(st.integers(1, 9)), draw(st.booleans())


@settings(deadline=None, max_examples=200)
@given(cases(), st.integers(0, 3))
def test_every_example_once_in_a_bucket_that_holds_it(case, epoch):
    lengths, buckets, size, shuffle = case
    plans = plans_of(lengths, buckets, batch_size=size, shuffle=shuffle, epoch=epoch)
    seen = np.concatenate([plan.indices for plan in plans] or [np.empty(0, int)])
    assert sorted(seen) == list(range(len(lengths)))
    assert sum(len(plan.indices) < size for plan in plans) <= 1
    for plan in plans:
        assert plan.length in buckets
        assert len(plan.indices) <= size
        longest = max(lengths[i] for i in plan.indices)
        assert longest <= plan.length
        if len(plan.indices) < size:
            assert plan.length == min(b for b in buckets if b >= longest)


@settings(deadline=None, max_examples=100)
@given(cases())
def test_epochs_have_the_same_shapes_and_are_index_functions(case):
    lengths, buckets, size, _ = case
    epochs = [plans_of(lengths, buckets, batch_size=size, epoch=epoch) for epoch in (0, 1, 0)]
    shapes = [sorted(plan.length for plan in plans) for plans in epochs]
    assert shapes[0] == shapes[1]
    for first, again in zip(epochs[0], epochs[2], strict=True):
        assert first.length == again.length
        np.testing.assert_array_equal(first.indices, again.indices)


def test_another_epoch_and_another_seed_are_another_order():
    lengths = np.full(64, 5)
    orders = {
        tuple(np.concatenate([p.indices for p in plans_of(lengths, (8,), seed=s, epoch=e)]))
        for s in (0, 1)
        for e in (0, 1)
    }
    assert len(orders) == 4


def test_lengths_do_not_come_sorted():
    plans = plans_of(np.repeat([4, 30], 100), (8, 32))
    lengths = [plan.length for plan in plans]
    assert lengths != sorted(lengths)
    assert lengths != sorted(lengths, reverse=True)


def test_the_first_example_is_spread_evenly_over_places():
    """A shuffle that favoured places would show here."""
    places = [
        list(plans_of(np.full(8, 3), (4,), batch_size=8, epoch=e)[0].indices).index(0)
        for e in range(200)
    ]
    counts = np.bincount(places, minlength=8)
    assert ((counts - 25) ** 2 / 25).sum() < 30


def test_no_epoch_is_left_almost_in_order():
    """A fair shuffle leaves one example in its place on average, and twelve once in 1e9 epochs."""
    for epoch in range(20):
        (plan,) = plans_of(np.ones(128), (1,), batch_size=128, epoch=epoch)
        assert (plan.indices == np.arange(128)).sum() < 12


def test_an_example_longer_than_the_last_bucket_is_an_error():
    with pytest.raises(ValueError, match="Example 1 has 9 tokens, the largest bucket holds 8"):
        plans_of([3, 9], (4, 8))


def test_many_examples():
    """A plan that compared examples with each other would never end."""
    lengths = np.random.default_rng(0).integers(1, 256, 320_000)
    assert len(plans_of(lengths, (32, 64, 128, 256), batch_size=32)) == 10_000


@settings(deadline=None, max_examples=60)
@given(cases(), cases())
def test_composition_of_batches_never_changes_a_weighted_metric(case, other):
    """The mean of anything over examples is the same in every bucket set-up."""
    lengths, buckets, size, shuffle = case
    if not lengths:
        return
    _, _, other_size, other_shuffle = other
    values = np.random.default_rng(0).normal(size=len(lengths))
    means = []
    for b, s, sh in ((buckets, size, shuffle), ([64], other_size, other_shuffle)):
        total = weight = 0.0
        for plan in plans_of(lengths, b, batch_size=s, shuffle=sh):
            batch = batch_of(tokens_of(lengths), plan, rows=s, pad=9)
            assert batch["input_ids"].shape == (s, plan.length)
            real = batch["example_ids"]
            total += (np.where(real >= 0, values[real], 1e9) * batch["weights"]).sum()
            weight += batch["weights"].sum()
        means.append(total / weight)
    assert means[0] == pytest.approx(means[1])


def batch_of(tokens, plan, *, rows, pad, **columns):
    examples = TextExamples(tokens, (plan.length,), pad, "", columns)
    return examples.batch(plan.indices, rows=rows, length=plan.length)


def tokens_of(lengths, pairs=False):
    total = int(sum(lengths))
    return TokenizedText(
        np.arange(1, total + 1, dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.ones(total, np.int32) if pairs else None,
        0,
    )


def test_a_batch_by_hand():
    tokens = tokens_of([2, 3], pairs=True)
    (plan,) = plans_of([2, 3], (4,), batch_size=3, shuffle=False)
    batch = batch_of(tokens, plan, rows=3, pad=99, labels=np.array([7, 8], np.int32))
    np.testing.assert_array_equal(
        batch["input_ids"], [[1, 2, 99, 99], [3, 4, 5, 99], [99, 99, 99, 99]]
    )
    np.testing.assert_array_equal(
        batch["attention_mask"], [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch["token_type_ids"], [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch["labels"], [7, 8, 0])
    np.testing.assert_array_equal(batch["weights"], [1, 1, 0])
    np.testing.assert_array_equal(batch["example_ids"], [0, 1, -1])


def test_an_empty_text_has_something_to_attend_to():
    """Of tokenizers that add no special tokens; a mean over no token is not a number."""
    (plan,) = plans_of([0, 2], (4,), batch_size=2, shuffle=False)
    batch = batch_of(tokens_of([0, 2]), plan, rows=2, pad=9)
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(batch["input_ids"][0], [9, 9, 9, 9])


def test_no_examples():
    assert plans_of([], (4,)) == []
