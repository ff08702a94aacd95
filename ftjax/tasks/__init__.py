"""Tasks: how records become batches, a network and scores. One file per task.

A task is what differs between "sort clauses into categories" and "continue a text": the loop, the
step, checkpoints and run folders are the same for all. `Task` is what they need of it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict


class Task(Protocol):
    """What a run needs to know of its task.

    Attributes:
        network_name: the published network to start from ("backbone", "causal_lm", ...).
        tokenizer: the checkpoint's own.
        datasets: split -> SHA-256 of its content.
        notes: what a person should know of the data, such as how many texts were truncated.
        retention: what is measured besides the task, or None.
        baselines: features by split -> name -> metric -> score on the test split; or None, if the
            task has none. With it, `features(network, batch)` gives the features.
    """

    network_name: str
    tokenizer: Any
    datasets: dict[str, str]
    notes: list[str]
    retention: "Retention | None"
    baselines: Callable[[dict[str, np.ndarray]], dict[str, dict[str, float]]] | None

    def count(self, split: str) -> int:
        """Examples of a split."""

    def training_tokens(self) -> np.ndarray:
        """Ids of the tokens that the network reads in training, int, with repetitions."""

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
        """Loss sum, weight sum and metric sums (see `ftjax.losses`)."""

    def outputs(self, network: nnx.Module, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What evaluation needs of each row, [batch, ...]."""

    def metrics(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Scores of a split from the outputs for all its examples, in their order."""


class Retention(Protocol):
    """Something the pretrained network could do, measured before and after.

    Attributes:
        datasets: split -> SHA-256 of its content.
    """

    datasets: dict[str, str]

    def batches(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """What it is measured on, by split."""

    def outputs(self, network: nnx.Module, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What is needed of each row, [batch, ...]."""

    def score(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """What is kept of one measurement, from the outputs for all examples in their order."""

    def metrics(self, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
        """`retention/before`, `retention/after`, `retention/change` (below 0: forgotten)."""


def make_task(config: ConfigDict, folder: Path) -> Task:
    """The task that a config names, with its data loaded.

    Args:
        config: validated.
        folder: the checkpoint's, for its tokenizer.
    """
    # Here, not above: the tasks import what this file defines.
    from ftjax.tasks.causal_lm import CausalLanguageModeling
    from ftjax.tasks.text_classification import TextClassification

    tasks = {"text_classification": TextClassification, "causal_lm": CausalLanguageModeling}
    return tasks[config.task](config, folder)
