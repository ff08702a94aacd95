"""Predictions of a finished run for new records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.use.finished import load_finished_run
from ftjax.use.outputs import Outputs


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
        self._outputs = Outputs(finished)

    def outputs(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The network's outputs, [records, ...], such as logits.

        Args:
            records: each with our names for its columns (see `fields`).

        Raises:
            ValueError: a record that is not what the run was trained on.
        """
        examples = self.objective.prediction_examples(records)
        return self._outputs(examples, self.objective.prediction_outputs)

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What is predicted for each record, as JSON values; see `outputs`."""
        if not len(records):
            return []
        examples = self.objective.prediction_examples(records)
        outputs = self._outputs(examples, self.objective.prediction_outputs)
        return self.objective.predictions(outputs, examples)
