"""What the network of a finished run says of examples."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from ftjax.data.examples import Examples
from ftjax.evaluation.measurement import Measurement
from ftjax.models.layers import Network
from ftjax.training.measure import Measure
from ftjax.training.parallel import make_parallel
from ftjax.use.finished import FinishedRun


class Outputs:
    """A finished run's network on the devices; each function is compiled once per shape."""

    def __init__(self, finished: FinishedRun):
        """Places the network."""
        self._size = finished.config.evaluation.batch_size
        self._parallel = make_parallel(finished.config.training)
        graphdef, state = nnx.split(finished.network)
        self._state = self._parallel.place(state)
        self._rebuild = lambda state, _: nnx.merge(graphdef, state)
        self._measures: dict[int, Measure] = {}

    def __call__(
        self,
        examples: Examples,
        outputs: Callable[[Network, Mapping[str, jax.Array]], jax.Array],
    ) -> np.ndarray:
        """One row of each example, [examples, ...].

        Args:
            examples: as the network reads them.
            outputs: (network, batch) -> array [rows, ...]; runs inside jit.
        """
        # Few records need no wide batch.
        multiple = self._parallel.batch_multiple
        rows = min(self._size, -(-len(examples.lengths) // multiple) * multiple)
        measure = self._measures.setdefault(rows, Measure(self._parallel, self._rebuild, {}, rows))
        measurement = Measurement({"records": examples}, outputs, lambda found: found["records"])
        return measure(measurement, self._state)
