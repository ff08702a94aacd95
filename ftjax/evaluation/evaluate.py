"""Outputs for every example exactly once, whatever the batches."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def outputs_by_example(
    function: Callable, batches: Iterable[dict[str, np.ndarray]], parallel: Any, *arguments: Any
) -> np.ndarray:
    """Runs a mapped function over batches and puts the results in the order of the examples.

    Args:
        function: mapped by `parallel.map_evaluate`, called as `function(*arguments, batch)`; gives
            one row per row of the batch.
        batches: numpy batches with `example_ids` [rows], -1 for rows that only pad.
        parallel: how `function` is mapped; places batches and fetches results.
        arguments: passed on, such as (trainable, frozen).

    Returns:
        [examples, ...], row i for the example with id i.

    Raises:
        ValueError: an example is missing or comes twice, or there is none.
    """
    rows, ids = [], []
    pending: collections.deque = collections.deque()

    def collect(keep: int) -> None:
        while len(pending) > keep:
            example_ids, result = pending.popleft()
            real = example_ids >= 0
            rows.append(parallel.fetch(result)[real])
            ids.append(example_ids[real])

    for batch in batches:
        pending.append((batch["example_ids"], function(*arguments, parallel.place_batch(batch))))
        collect(keep=2)
    collect(keep=0)
    if not rows:
        raise ValueError("There is nothing to evaluate: the split is empty.")
    order = np.concatenate(ids)
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        raise ValueError("The batches do not hold every example exactly once.")
    outputs = np.concatenate(rows)
    result = np.empty_like(outputs)
    result[order] = outputs
    return result
