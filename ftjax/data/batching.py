"""From ragged examples to batches of a few static shapes.

Everything here is an index function of (seed, epoch): a run that is resumed makes the same batches
as one that never stopped, without reading what came before.
"""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which examples make a batch, and the length they are padded to.

    Attributes:
        length: tokens per row, one of the buckets.
        indices: int64 [up to batch_size], examples.
    """

    length: int
    indices: np.ndarray


def plan_batches(
    lengths: np.ndarray,
    *,
    batch_size: int,
    buckets: Sequence[int],
    seed: int,
    epoch: int,
    shuffle: bool,
) -> list[BatchPlan]:
    """Groups examples of similar length, every example exactly once.

    An example goes to the smallest bucket that holds it. What does not fill a batch of its bucket
    moves up to the next larger one, so that at most one batch of an epoch is not full, and every
    epoch has the same number of batches of each length.

    Args:
        lengths: int [examples], tokens of each.
        batch_size: rows of a batch.
        buckets: rising lengths in tokens.
        seed: the run's.
        epoch: with `seed`, says the order.
        shuffle: whether examples and batches come in random order; else in the given order,
            bucket by bucket.

    Returns:
        The batches in order; none for no examples.

    Raises:
        ValueError: an example is longer than the largest bucket.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > buckets[-1]:
        raise ValueError(
            f"Example {int(lengths.argmax())} has {int(lengths.max())} tokens, the largest bucket "
            f"holds {buckets[-1]}; tokenise with max_length = {buckets[-1]} or add a bucket."
        )
    order = _shuffled(len(lengths), seed, epoch, "examples") if shuffle else np.arange(len(lengths))
    bucket_of = np.searchsorted(np.asarray(buckets), lengths[order])
    plans, carried = [], np.empty(0, np.int64)
    for number, length in enumerate(buckets):
        members = np.concatenate([carried, order[bucket_of == number]])
        full = len(members) // batch_size * batch_size
        plans += [BatchPlan(length, rows) for rows in members[:full].reshape(-1, batch_size)]
        carried = members[full:]
    if len(carried):
        # The last few may all be short: pad them no further than they need.
        length = buckets[int(np.searchsorted(np.asarray(buckets), lengths[carried].max()))]
        plans.append(BatchPlan(length, carried))
    if shuffle:
        plans = [plans[i] for i in _shuffled(len(plans), seed, epoch, "batches")]
    return plans


def _shuffled(count: int, seed: int, epoch: int, what: str) -> np.ndarray:
    """A permutation of range(count), by grain's index shuffle."""
    entropy = (seed, epoch, {"examples": 0, "batches": 1}[what])
    key = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    shuffle = grain.experimental.index_shuffle
    # With the 4 rounds that grain itself uses, one epoch in a hundred is left almost in order.
    places = (shuffle(i, max_index=count - 1, seed=key, rounds=8) for i in range(count))
    return np.fromiter(places, np.int64, count)
