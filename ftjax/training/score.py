"""Scoring a network: metrics of a split, what it retained, and what it is compared with."""

import functools
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from ftjax.evaluation import baselines
from ftjax.evaluation.evaluate import outputs_by_example
from ftjax.evaluation.metrics import label_metrics
from ftjax.tasks import Task
from ftjax.tasks.retention import RetentionCorpus
from ftjax.training.parallel import MeshParallel, PmapParallel
from ftjax.tuning import Parameters, Rebuild

SPLITS = ("train", "validation", "test")


class Scorer:
    """Scores of one run's network at any parameters; each function is compiled once per shape.

    Attributes:
        datasets: split -> SHA-256 of what is scored besides the task.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        parallel: MeshParallel | PmapParallel,
        rebuild: Rebuild,
        frozen: Parameters,
    ):
        self._config, self._task, self._parallel, self._frozen = config, task, parallel, frozen
        self._outputs = parallel.map_evaluate(lambda t, f, batch: rebuild(t, f)(batch))
        self._features = parallel.map_evaluate(lambda t, f, batch: rebuild(t, f).features(batch))
        self._corpus = None
        if config.retention.enabled:
            self._corpus = RetentionCorpus(
                config.retention, task.tokenizer, config.evaluation.batch_size
            )

    def metrics(self, split: str, trainable: Parameters) -> dict[str, float]:
        """`<split>/<metric>` of the task."""
        outputs = self._run(self._outputs, trainable, self._batches(split))
        scores = self._task.metrics(split, outputs)
        return {f"{split}/{name}": value for name, value in scores.items()}

    def retention(self, trainable: Parameters) -> np.ndarray:
        """Whether a probe on the features sorts each text of the other corpus right."""
        return self._corpus.correct(functools.partial(self._run, self._features, trainable))

    def before(self, trainable: Parameters) -> dict:
        """What training does not change: scores of the baselines, retention before.

        Args:
            trainable: the parameters at their start, not yet on the devices.

        Returns:
            JSON values: `metrics`, and `retention` where it is measured.
        """
        trainable = self._parallel.place(trainable)
        result: dict = {"metrics": {}}
        if self._config.evaluation.baselines:
            for name, predictions in self._baselines(trainable).items():
                scores = label_metrics(self._task.splits["test"].labels, predictions)
                result["metrics"] |= {f"test/{name}/{key}": v for key, v in scores.items()}
        if self._corpus is not None:
            result["retention"] = self.retention(trainable).tolist()
        return result

    def _baselines(self, trainable: Parameters) -> dict[str, np.ndarray]:
        train, validation, test = (self._task.splits[name] for name in SPLITS)
        features = {
            name: self._run(self._features, trainable, self._batches(name)) for name in SPLITS
        }
        return {
            "majority": baselines.majority(train.labels, len(test.labels)),
            "tfidf_logistic_regression": baselines.tfidf_logistic_regression(
                (train.texts, train.labels), (validation.texts, validation.labels), test.texts
            ),
            "frozen_linear_head": baselines.linear_head(
                (features["train"], train.labels),
                (features["validation"], validation.labels),
                features["test"],
            ),
        }

    def _batches(self, split: str) -> Iterable[dict[str, np.ndarray]]:
        size = self._config.evaluation.batch_size
        return (
            self._task.make(split, size, plan) for plan in self._task.plan(split, batch_size=size)
        )

    def _run(self, function, trainable, batches) -> np.ndarray:
        return outputs_by_example(function, batches, self._parallel, trainable, self._frozen)
