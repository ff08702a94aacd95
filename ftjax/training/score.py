"""Scoring a network: metrics of a split, what it retained, and what it is compared with."""

from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from ftjax.evaluation.evaluate import outputs_by_example
from ftjax.tasks import Task
from ftjax.training.features import CachedFeatures
from ftjax.training.parallel import MeshParallel, PmapParallel
from ftjax.tuning import Parameters, Rebuild

SPLITS = ("train", "validation", "test")


class Scorer:
    """Scores of one run's network at any parameters; each function is compiled once per shape.

    Attributes:
        cached: features that stand for the texts, where only the head moves.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        parallel: MeshParallel | PmapParallel,
        rebuild: Rebuild,
        frozen: Parameters,
        cached: CachedFeatures | None = None,
    ):
        def mapped(function: Callable) -> Callable:
            return parallel.map_evaluate(lambda t, f, batch: function(rebuild(t, f), batch))

        self.cached = cached
        self._size = config.evaluation.batch_size
        self._task, self._parallel, self._frozen = task, parallel, frozen
        self._outputs = mapped(task.outputs)
        self._features = mapped(task.features) if task.baselines else None
        self._retention = mapped(task.retention.outputs) if task.retention else None

    def metrics(self, split: str, trainable: Parameters) -> dict[str, float]:
        """`<split>/<metric>` of the task."""
        batches = self._batches(split)
        if self.cached is not None:
            batches = (self.cached.batch(split, batch) for batch in batches)
        scores = self._task.metrics(split, self._run(self._outputs, trainable, batches))
        return {f"{split}/{name}": value for name, value in scores.items()}

    def retention(self, trainable: Parameters) -> np.ndarray:
        """One measurement of what the task says should be retained."""
        outputs = {
            name: self._run(self._retention, trainable, batches)
            for name, batches in self._task.retention.batches().items()
        }
        return self._task.retention.score(outputs)

    def features(self, trainable: Parameters) -> CachedFeatures:
        """What the head sees of every example."""
        return CachedFeatures(
            {name: self._run(self._features, trainable, self._batches(name)) for name in SPLITS}
        )

    def _batches(self, split: str) -> Iterable[dict[str, np.ndarray]]:
        plans = self._task.plan(split, batch_size=self._size)
        return (self._task.make(split, self._size, plan) for plan in plans)

    def _run(self, function, trainable, batches) -> np.ndarray:
        return outputs_by_example(function, batches, self._parallel, trainable, self._frozen)
