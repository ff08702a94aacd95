"""Measurements of a network: outputs for every example exactly once, whatever the batches."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ftjax.data.examples import plan
from ftjax.evaluation.measurement import Measurement
from ftjax.progress import track
from ftjax.training.loop import DivergedError
from ftjax.training.parallel import MeshParallel, PmapParallel
from ftjax.tuning.partition import Parameters, Rebuild

# A device has work while the results before are read.
BATCHES_AHEAD = 2


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
            names: keys of `measurement.examples`, besides those that it always needs.

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
        for name in measurement.examples if names is None else (*names, *measurement.always):
            examples = measurement.examples[name]
            planned = plan(examples, self._size)
            made = (examples.batch(p.indices, rows=self._size, length=p.length) for p in planned)
            results = results_of(
                self._mapped[function], made, self._parallel, trainable, self._frozen
            )
            # What is waited for is shown, and not what is sent away.
            found[name] = by_example(track(results, f"measuring {name}", len(planned)))
            _refuse_no_numbers(name, found[name])
        return measurement.score(found)

    def solved(self, measurement: Measurement | None, trainable: Parameters) -> Parameters:
        """Parameters with those that are computed from them; see `Objective.solved`.

        Args:
            measurement: its score is path -> array; None for nothing to compute.
            trainable: on the devices.
        """
        if measurement is None:
            return trainable
        found = {
            path: value.astype(trainable[path].dtype)
            for path, value in self(measurement, trainable).items()
        }
        return trainable | self._parallel.place(found)


def results_of(
    function: Callable, batches: Iterable[dict[str, np.ndarray]], parallel: Any, *arguments: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs a mapped function over batches, a few of them ahead.

    Args:
        function: mapped by `parallel.map_evaluate`, called as `function(*arguments, batch)`; gives
            one row per row of the batch.
        batches: numpy batches with `example_ids` [rows], -1 for rows that only pad.
        parallel: how `function` is mapped; places batches and fetches results.
        arguments: passed on, such as (trainable, frozen).

    Yields:
        Of each batch the ids of its examples, and their rows.
    """
    pending: collections.deque = collections.deque()

    def first() -> tuple[np.ndarray, np.ndarray]:
        ids, result = pending.popleft()
        real = ids >= 0
        return ids[real], parallel.fetch(result)[real]

    for batch in batches:
        pending.append((batch["example_ids"], function(*arguments, parallel.place_batch(batch))))
        if len(pending) > BATCHES_AHEAD:
            yield first()
    while pending:
        yield first()


def by_example(results: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Results in the order of the examples: [examples, ...], row i for the example with id i.

    Raises:
        ValueError: an example is missing or comes twice, or there is none.
    """
    ids, rows = [], []
    for some_ids, some_rows in results:
        ids.append(some_ids)
        rows.append(some_rows)
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
            "config.optimizer.learning_rate, clip to less with config.optimizer.max_gradient_norm, "
            "or compute in float32 (config.model.dtype)."
        )
