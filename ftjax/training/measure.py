"""Measurements of a network: outputs for every example exactly once, whatever the batches."""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ftjax.data.examples import plan
from ftjax.evaluation.measurement import Measurement
from ftjax.progress import track
from ftjax.training.loop import DivergedError
from ftjax.training.parallel import MeshParallel, PmapParallel
from ftjax.tuning.partition import Parameters, Rebuild


class Measure:
    """Measures one network at any parameters; each function is compiled once per shape."""

    def __init__(
        self,
        parallel: MeshParallel | PmapParallel,
        rebuild: Rebuild,
        frozen: Parameters,
        batch_size: int,
    ):
        """Remembers what is measured.

        Args:
            parallel: how functions are mapped over devices.
            rebuild: (trainable, frozen) -> network.
            frozen: on the devices.
            batch_size: examples per batch.
        """
        self._parallel, self._rebuild, self._frozen = parallel, rebuild, frozen
        self._size = batch_size
        self._mapped: dict[Callable, Callable] = {}

    def __call__(
        self,
        measurement: Measurement,
        trainable: Parameters,
        names: Sequence[str] | None = None,
    ) -> Any:
        """The score of some of the measurement's examples, all by default.

        Args:
            measurement: what to measure.
            trainable: on the devices.
            names: keys of `measurement.examples`.

        Raises:
            DivergedError: an output is no number.
        """
        function = measurement.outputs
        if function not in self._mapped:
            # Bound late: in the loop it would be the last one's.
            self._mapped[function] = self._parallel.map_evaluate(
                lambda trainable, frozen, batch: function(self._rebuild(trainable, frozen), batch)
            )
        found = {}
        for name in names or measurement.examples:
            examples = measurement.examples[name]
            planned = track(plan(examples, self._size), f"measuring {name}")
            made = (examples.batch(p.indices, rows=self._size, length=p.length) for p in planned)
            found[name] = outputs_by_example(
                self._mapped[function], made, self._parallel, trainable, self._frozen
            )
            _refuse_no_numbers(name, found[name])
        return measurement.score(found)


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


def _refuse_no_numbers(name: str, outputs: np.ndarray) -> None:
    finite = np.isfinite(outputs.astype(np.float32)).reshape(len(outputs), -1).all(1)
    if not finite.all():
        records = ", ".join(str(index + 1) for index in np.flatnonzero(~finite)[:5])
        raise DivergedError(
            f"The network's outputs for {np.count_nonzero(~finite):,} of {len(outputs):,} examples "
            f"of {name} are no numbers (records {records}, ...). Lower "
            "config.optimizer.learning_rate or config.optimizer.max_gradient_norm, or use "
            "model.dtype = 'float32'."
        )
