"""Predictions of a finished run for new records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ftjax.data.examples import Examples
from ftjax.evaluation.measurement import Measurement
from ftjax.training.measure import Measure
from ftjax.training.parallel import make_parallel
from ftjax.use.finished import load_finished_run


class Predictor:
    """Predicts with a finished run.

    Attributes:
        objective: what the run learned.
        fields: our names -> columns of a file of records.
    """

    def __init__(self, run: str | Path, *, accept_fields: tuple[str, ...] = ()):
        """Loads the run.

        Args:
            run: its folder.
            accept_fields: as of `load_finished_run`.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            ValueError: the run learned to write, or its pretrained weights have changed.
        """
        finished = load_finished_run(run, accept_fields=accept_fields)
        self.objective = finished.objective
        self.fields = finished.objective.prediction_fields
        if not self.fields:
            self.objective.prediction_examples([])
        self._size = finished.config.evaluation.batch_size
        self._parallel = make_parallel(finished.config.training)
        graphdef, state = nnx.split(finished.network)
        self._state = self._parallel.place(state)
        self._rebuild = lambda state, _: nnx.merge(graphdef, state)
        self._measures: dict[int, Measure] = {}

    def outputs(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The network's outputs, [records, ...], such as logits.

        Args:
            records: each with our names for its columns (see `fields`).

        Raises:
            ValueError: a record that is not what the run was trained on.
        """
        return self._outputs(self.objective.prediction_examples(records))

    def _outputs(self, examples: Examples) -> np.ndarray:
        # Few records need no wide batch.
        multiple = self._parallel.batch_multiple
        rows = min(self._size, -(-len(examples.lengths) // multiple) * multiple)
        measure = self._measures.setdefault(rows, Measure(self._parallel, self._rebuild, {}, rows))
        measurement = Measurement(
            {"records": examples}, self.objective.prediction_outputs, lambda found: found["records"]
        )
        return measure(measurement, self._state)

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What is predicted for each record, as JSON values; see `outputs`."""
        if not len(records):
            return []
        examples = self.objective.prediction_examples(records)
        return self.objective.predictions(self._outputs(examples), examples)
