"""Tasks: how records become batches, a network and scores. One file per task.

A task is what differs between "sort clauses into categories" and "continue a text": the loop, the
step, checkpoints and run folders are the same for all. `Task` is what they need of it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict


class Task(Protocol):
    """What a run needs to know of its task.

    Attributes:
        tokenizer: the checkpoint's own.
        datasets: split -> SHA-256 of its content.
        notes: what a person should know of the data, such as how many texts were truncated.
    """

    tokenizer: Any
    datasets: dict[str, str]
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """What a finished run needs to be used without its data, as JSON values."""

    def network(self, backbone: nnx.Module, seed: int) -> nnx.Module:
        """The backbone with what the task adds; called as `network(batch, key=key)`."""

    def plan(self, split: str, batch_size: int, epoch: int | None = None) -> list:
        """The batches of a split: shuffled for an epoch, or once through in order for None."""

    def make(self, split: str, batch_size: int, plan: Any) -> dict[str, np.ndarray]:
        """A planned batch as arrays of its static shape."""

    def loss(
        self, outputs: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Loss sum, weight sum and metric sums (see `ftjax.objectives`)."""

    def metrics(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Scores of a split from the outputs for all its examples, in their order."""


def make_task(config: ConfigDict, folder) -> Task:
    """The task that a config names, with its data loaded.

    Args:
        config: validated.
        folder: the checkpoint's, for its tokenizer.
    """
    from ftjax.tasks.text_classification import TextClassification

    return {"text_classification": TextClassification}[config.task](config, folder)
