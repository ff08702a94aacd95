"""What an objective is: everything that differs between one thing to learn and another.

The loop, the step, checkpoints and run folders are the same for all and ask an objective for what
they need. Adding one is a file with a class and a line in `ftjax/objectives/__init__.py`.
"""

import abc
import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from ftjax.data.examples import Examples
from ftjax.data.sources import Records, load_records
from ftjax.data.text import load_tokenizer
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.fields import Field, Fields, Settings
from ftjax.losses.forward import Forward

SPLITS = ("train", "validation", "test")
LossSums = tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]


class Objective(abc.ABC):
    """One thing to learn.

    Attributes:
        fields: what it reads of a config, besides the fields that all have.
        metrics: of a split -> whether "higher" or "lower" is better.
        has_new_head: whether the network's predictions before tuning mean nothing.
        config: the run's.
        tokenizer: the checkpoint's own.
        examples: split -> its examples, after `read`.
        notes: what a person should know of the data, such as how many texts were truncated.
        facts: what a finished run needs to be used without its data, as JSON values.
    """

    fields: ClassVar[Fields]
    metrics: ClassVar[Mapping[str, str]]
    has_new_head: bool = False

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        """Prepares; data are read by `read`.

        Args:
            config: validated, or that of a finished run.
            folder: the checkpoint's.
            facts: of a finished run.
        """
        self.config, self.folder = config, folder
        self.tokenizer = load_tokenizer(folder, grow_table=config.model.grow_table)
        self.examples: dict[str, Examples] = {}
        self.notes: list[str] = []
        self.facts: dict[str, Any] = dict(facts or {})

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """What is wrong with a combination of fields, as a sentence, or None."""
        return None

    def read(self) -> None:
        """Reads all splits, the training split first.

        Raises:
            ValueError: a record that cannot be learned from; names file and record.
        """
        for split in SPLITS:
            self.examples[split] = self.read_split(split)
        for first, second in itertools.combinations(SPLITS, 2):
            if self.examples[first].fingerprint == self.examples[second].fingerprint:
                raise ValueError(
                    f"The splits {first} and {second} of {self.config.data.source} hold the same "
                    "records, so their scores would mean nothing. Give each split its own."
                )

    def with_examples(self, examples: dict[str, Examples]) -> "Objective":
        """The same, with others in the place of its examples."""
        other = copy.copy(self)
        other.examples = examples
        return other

    @abc.abstractmethod
    def read_split(self, split: str) -> Examples:
        """The examples of "train", "validation" or "test"."""

    @property
    @abc.abstractmethod
    def network_name(self) -> str:
        """The published network to start from ("backbone", "causal_lm", ...)."""

    @abc.abstractmethod
    def network(self, backbone: nnx.Module) -> nnx.Module:
        """The published network with what is added; called as `network(batch, key=key)`."""

    @abc.abstractmethod
    def loss(self, forward: Forward) -> LossSums:
        """Loss sum and weight sum, and of each further metric its sum and weight sum.

        Sums and weights, not means: then micro-batches and devices with unequal numbers of examples
        add up to exactly the loss of the whole batch.
        """

    @abc.abstractmethod
    def outputs(self, network: nnx.Module, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What scoring needs of each row, [rows, ...]."""

    @abc.abstractmethod
    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Metrics of a split from the outputs of all its examples, in their order."""

    def measurement(self) -> Measurement:
        """The scores of splits, as `<split>/<metric>`."""

        def score(found: dict[str, np.ndarray]) -> dict[str, float]:
            return {
                f"{split}/{name}": value
                for split, outputs in found.items()
                for name, value in self.score(split, outputs).items()
            }

        return Measurement(self.examples, self.outputs, score)

    def details(self, outputs: np.ndarray) -> dict[str, Any]:
        """More of the test split than numbers by name, as JSON values; for the result."""
        return {}

    def retention(self) -> Retention | None:
        """What should not be forgotten, with its data read; None if the config asks for none."""
        return None

    def general_text(self, records: Records) -> Examples:
        """Texts without labels, as the network reads them; for penalties."""
        raise ValueError(f"{type(self).__name__} has no use for general text.")

    def features(self, network: nnx.Module, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What a new head sees of each row, [rows, hidden]."""
        return network.features(batch)

    @property
    def wants_features(self) -> bool:
        """Whether `baselines` needs the pretrained network's features."""
        return False

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """What the network has to beat on the test split: name -> metric -> score.

        Args:
            features: of the pretrained network, split -> [examples, hidden].
        """
        return {}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Records without labels as examples.

        Raises:
            ValueError: the objective does not predict; says which script uses the run.
        """
        raise ValueError("This run learned to write texts; scripts/chat.py talks with it.")

    @property
    def prediction_fields(self) -> dict[str, str]:
        """Our names -> columns of a file of records to predict for."""
        return {}

    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """What is predicted for each record, as JSON values."""
        return []

    def load(self, split: str, fields: Mapping[str, str]) -> Records:
        """The records of a split as the config names it; `train_limit` holds for training."""
        data = self.config.data
        limit = data.train_limit if split == "train" else None
        return load_records(data.source, split=data[f"{split}_split"], fields=fields, limit=limit)


def metric_field(metrics: Mapping[str, str], default: str) -> Fields:
    """The field that says which metric chooses the checkpoint."""
    lower = ", ".join(name for name, better in metrics.items() if better == "lower")
    meaning = f"Validation metric that chooses the checkpoint ({lower}: lower is better)."
    return {"evaluation.metric": Field(default, meaning, choices=tuple(metrics))}


def buckets_problem(buckets: Sequence[int]) -> str | None:
    """What is wrong with lengths to pad to, as a sentence, or None."""
    if not buckets or list(buckets) != sorted(set(buckets)):
        return f"config.data.buckets = {buckets} must be rising lengths, such as (32, 64, 128)."
    return None
