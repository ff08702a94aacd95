"""Scoring a network: metrics of a split, what it retained, and what it is compared with."""

from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from ftjax.evaluation.evaluate import outputs_by_example
from ftjax.tasks import Task
from ftjax.training.parallel import MeshParallel, PmapParallel
from ftjax.tuning import Parameters, Rebuild

SPLITS = ("train", "validation", "test")


class Scorer:
    """Scores of one run's network at any parameters; each function is compiled once per shape."""

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        parallel: MeshParallel | PmapParallel,
        rebuild: Rebuild,
        frozen: Parameters,
    ):
        def mapped(function: Callable) -> Callable:
            return parallel.map_evaluate(lambda t, f, batch: function(rebuild(t, f), batch))

        self._size, self._with_baselines = config.evaluation.batch_size, config.evaluation.baselines
        self._task, self._parallel, self._frozen = task, parallel, frozen
        self._outputs = mapped(task.outputs)
        self._features = mapped(task.features) if task.baselines else None
        self._retention = mapped(task.retention.outputs) if task.retention else None

    def metrics(self, split: str, trainable: Parameters) -> dict[str, float]:
        """`<split>/<metric>` of the task."""
        outputs = self._run(self._outputs, trainable, self._batches(split))
        scores = self._task.metrics(split, outputs)
        return {f"{split}/{name}": value for name, value in scores.items()}

    def retention(self, trainable: Parameters) -> np.ndarray:
        """One measurement of what the task says should be retained."""
        outputs = {
            name: self._run(self._retention, trainable, batches)
            for name, batches in self._task.retention.batches().items()
        }
        return self._task.retention.score(outputs)

    def before(self, trainable: Parameters) -> dict:
        """What training does not change: scores of the baselines, retention before.

        Args:
            trainable: the parameters at their start, not yet on the devices.

        Returns:
            JSON values: `metrics`, and `retention` where it is measured.
        """
        trainable = self._parallel.place(trainable)
        result: dict = {"metrics": {}}
        if self._features and self._with_baselines:
            features = {
                name: self._run(self._features, trainable, self._batches(name)) for name in SPLITS
            }
            for name, scores in self._task.baselines(features).items():
                result["metrics"] |= {f"test/{name}/{key}": v for key, v in scores.items()}
        elif self._features is None:
            # Without baselines, a published network is its own.
            scores = self.metrics("test", trainable)
            result["metrics"] |= {k.replace("/", "/pretrained/"): v for k, v in scores.items()}
        if self._retention:
            result["retention"] = self.retention(trainable).tolist()
        return result

    def _batches(self, split: str) -> Iterable[dict[str, np.ndarray]]:
        plans = self._task.plan(split, batch_size=self._size)
        return (self._task.make(split, self._size, plan) for plan in plans)

    def _run(self, function, trainable, batches) -> np.ndarray:
        return outputs_by_example(function, batches, self._parallel, trainable, self._frozen)
