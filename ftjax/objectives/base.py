"""What an objective is: everything that differs between one thing to learn and another.

The loop, the step, checkpoints and run folders are the same for all and ask an objective for what
they need. Adding one is a file with a class and a line in `ftjax/objectives/__init__.py`.
"""

import abc
import copy
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from rich.text import Text

from ftjax.data.examples import Examples, SomeExamples
from ftjax.data.sources import Division, Records, Source
from ftjax.data.sources.records import BadRecordError, require_few
from ftjax.data.sources.splitting import SHARES, drawn
from ftjax.data.tokenizer import load_tokenizer
from ftjax.evaluation.answers import Answers
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.fields import Fields, Settings
from ftjax.losses.divergence import divergence
from ftjax.losses.forward import Forward
from ftjax.models.layers import Network
from ftjax.objectives.rollout import Rollout
from ftjax.objectives.teachers import Teacher
from ftjax.pretrained.adapter import save_adapter
from ftjax.pretrained.checkpoint import Checkpoint, read_config
from ftjax.pretrained.compare import merged_and_compared
from ftjax.pretrained.export import export
from ftjax.progress import timed

SPLITS = ("train", "validation", "test")
BASELINE_EXAMPLES = {"train": 20_000, "validation": 5_000}
"""More than these say little more, and take many minutes."""
Say = Callable[[str], None]
LossSums = tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]


class Objective(abc.ABC):
    """One thing to learn.

    Attributes:
        fields: what it reads of a config, besides the fields that all have.
        metrics: of a split -> whether "higher" or "lower" is better.
        has_new_head: whether the network's predictions before tuning mean nothing.
        keeps_features: whether a head alone can be trained on `features`, one vector of each row.
        gives_labels: whether its predictions have `marks`.
        rows_meet: whether rows see each other in the loss, so that a batch cannot be divided.
        config: the run's.
        examples: split -> its examples, after `read`.
        notes: what a person should know of the data, such as how many texts were truncated.
        facts: what a finished run needs to be used without its data, as JSON values.
    """

    fields: ClassVar[Fields]
    metrics: ClassVar[Mapping[str, str]]
    has_new_head: bool = False
    keeps_features: bool = True
    gives_labels: bool = False
    rows_meet: bool = False

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        """Prepares; data are read by `read`.

        Args:
            config: validated, or that of a finished run.
            folder: the checkpoint's.
            facts: of a finished run.
        """
        self.config, self.folder = config, folder
        self.examples: dict[str, Examples] = {}
        self.notes: list[str] = []
        self.facts: dict[str, Any] = dict(facts or {})
        self._source: Source | None = None
        self._contents: dict[str, list] = {}
        # Split -> number of a record among all of it -> why it is left out.
        self._left_out: dict[str, dict[int, str]] = {}
        self._unread = 0

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own, a transformers.PreTrainedTokenizerBase."""
        return load_tokenizer(self.folder, grow_table=self.config.model.grow_table)

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """What is wrong with a combination of fields, as a sentence, or None."""
        return None

    def read(self) -> None:
        """Reads all splits, the training split first.

        Raises:
            ValueError: a record that cannot be learned from, or too many of them to be left out as
                the config wants it; names file and record.
        """
        for split in SPLITS:
            self.examples[split] = self._read_without_bad_records(split)
        self._note_source()
        for first, second in itertools.combinations(SPLITS, 2):
            if self.examples[first].fingerprint == self.examples[second].fingerprint:
                raise ValueError(
                    f"The splits {first} and {second} of {self.config.data.source} hold the same "
                    "records, so their scores would mean nothing. Give each split its own."
                )

    def _read_without_bad_records(self, split: str) -> Examples:
        """The examples of a split; of records that it refuses, as the config wants it."""
        while True:
            before = {n: copy.copy(v) for n, v in vars(self).items() if isinstance(v, dict | list)}
            try:
                examples = self.read_split(split)
            except BadRecordError as error:
                if self.config.data.on_bad_record == "refuse":
                    raise
                self._leave_out(split, error)
                # Nothing that was noted of them stays.
                vars(self).update(before, _left_out=self._left_out)
                continue
            if left_out := self._left_out.get(split):
                problems = [left_out[index] for index in sorted(left_out)]
                count = len(left_out) + len(self._contents[split])
                self.notes.append(f"{split}: {require_few(split, problems, count)}")
            return examples

    def _leave_out(self, split: str, error: BadRecordError) -> None:
        """Remembers bad records by their number among all of the split.

        Raises:
            BadDataError: they are too many.
        """
        known = self._left_out.setdefault(split, {})
        count = len(known) + len(self._contents[split])
        kept = np.delete(np.arange(count), list(known))
        known |= {int(kept[index]): problem for index, problem in error.problems.items()}
        require_few(split, [known[index] for index in sorted(known)], count)

    @property
    def draws(self) -> bool:
        """Whether `data.split_seed` says more than which records are read."""
        return False

    @property
    def left_out(self) -> int:
        """How many records could not be learned from."""
        return self._unread + sum(map(len, self._left_out.values()))

    def with_examples(self, examples: dict[str, Examples]) -> Self:
        """The same, with others in the place of its examples."""
        other = copy.copy(self)
        other.examples = examples
        return other

    def with_rows(self, rows: Mapping[str, np.ndarray]) -> Self:
        """The same with some of its examples only.

        Args:
            rows: split -> int [rows], which of them.
        """
        chosen = {name: SomeExamples(all_, rows[name]) for name, all_ in self.examples.items()}
        return self.with_examples(dict(chosen))

    def baseline_rows(self) -> dict[str, np.ndarray]:
        """Which examples baselines learn from, and are chosen with; for the test split, all."""
        counts = {split: len(examples.lengths) for split, examples in self.examples.items()}
        return {
            split: drawn(np.zeros(count, np.int64), BASELINE_EXAMPLES.get(split, count), 0)
            for split, count in counts.items()
        }

    def epoch_examples(self, epoch: int) -> Examples:
        """The training split as an epoch sees it; the same for the same epoch, always."""
        return self.examples["train"]

    @abc.abstractmethod
    def read_split(self, split: str) -> Examples:
        """The examples of "train", "validation" or "test"."""

    def shown_example(self) -> Text | None:
        """One example as it is learned, for a person; None where there is nothing to look at."""
        return None

    @property
    @abc.abstractmethod
    def network_name(self) -> str:
        """The published network to start from ("backbone", "causal_lm", ...)."""

    def checkpoint(self, say: Say) -> Path | Checkpoint:
        """What `network_name` is loaded from.

        Args:
            say: told what of it is new.
        """
        return self.folder

    def export(self, network: Network, folder: str | Path) -> None:
        """Writes a trained network as a folder that others load, reloads it and compares.

        Args:
            network: of this objective, perhaps with adapters; changed in place.
            folder: to be made.

        Raises:
            FileExistsError: the folder is there already.
            ValueError: what was learned is no change of weights, or the same does not load again.
        """
        with timed("Merging and comparing"):
            merged, expected = merged_and_compared(network, self.folder)
        with timed("Writing, loading again and comparing"):
            export(
                merged,
                self.network_name,
                self.folder,
                folder,
                fields=self.exported_fields(),
                expected=expected,
                accept_fields=tuple(self.config.model.accept_fields),
            )

    def exported_fields(self) -> dict[str, Any]:
        """config.json of an export, but for what parameters say; by default the checkpoint's."""
        return read_config(self.folder)

    def export_adapter(self, network: Network, folder: str | Path) -> None:
        """Writes only what was learned beside the published weights; see `save_adapter`."""
        accept = tuple(self.config.model.accept_fields)
        save_adapter(network, self.network_name, self.folder, folder, accept_fields=accept)

    @abc.abstractmethod
    def network(self, backbone: Network) -> Network:
        """The published network with what is added; called as `network(batch, key=key)`."""

    @abc.abstractmethod
    def loss(self, forward: Forward) -> LossSums:
        """Loss sum and weight sum, and of each further metric its sum and weight sum.

        Sums and weights, not means: then micro-batches and devices with unequal numbers of examples
        add up to exactly the loss of the whole batch.
        """

    def augmented(self, batch: Mapping[str, jax.Array], key: jax.Array) -> Mapping[str, jax.Array]:
        """A batch as it is learned from in one step; inside jit, by a key of the step."""
        return batch

    def general_loss(self, forward: Forward) -> LossSums:
        """Of text that has nothing to do with the task (`penalties.replay`); as `loss`."""
        return self.loss(forward)

    @property
    def compares_live(self) -> bool:
        """Whether `loss` asks the network before tuning in each step."""
        return False

    @property
    def rows_at_once(self) -> int | None:
        """Rows whose activations a step holds, however many the loss compares; None for all."""
        return None

    def reference(self) -> Measurement | None:
        """What has to be known of the network before tuning, as an array of each example."""
        return None

    def with_reference(self, found: Mapping[str, np.ndarray]) -> Self:
        """The same, with what `reference` measured."""
        raise NotImplementedError

    def rollout(self) -> Rollout | None:
        """What the network does before each update; None if it learns from examples as they are."""
        return None

    @property
    def updates(self) -> int:
        """How many steps are given the same batch."""
        return rollout.updates if (rollout := self.rollout()) is not None else 1

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of what else the result depends on, besides examples and weights, by name."""
        return {}

    def teacher(self) -> Teacher | None:
        """Another network that `loss` learns from; None for none."""
        return None

    def with_teacher(self, found: np.ndarray) -> Self:
        """The same, with what the teacher said of each example of the training split."""
        raise NotImplementedError

    def solved(self) -> Measurement | None:
        """What gives parameters (path -> array) that are computed from the others, not learned.

        They are computed before each validation, and kept with the best.
        """
        return None

    def alarm(self, metrics: Mapping[str, float]) -> str | None:
        """What a person should be told of a validation's metrics while training goes on."""
        return None

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """How far apart two networks' predictions are; see `losses.divergence`."""
        return divergence(first, second, weights)

    @abc.abstractmethod
    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
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

    def validation(self) -> Measurement:
        """What is scored while training goes on; it may leave out costly metrics."""
        return self.measurement()

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """More of the test split than numbers by name, as JSON values; for the result.

        Args:
            outputs: of the trained network for "validation" and "test".
        """
        return {}

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Metric of the test split -> its 95 % interval over the test examples, if it has one.

        Args:
            outputs: for "test", and perhaps for "validation".
        """
        return {}

    def written(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Files of the run folder that others read, by name, as JSON values.

        Args:
            outputs: as of `details`.
        """
        return {}

    def learned_facts(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """More `facts`, which only the trained network tells; from the validation split.

        Args:
            outputs: as of `details`.
        """
        return {}

    def retention(self) -> Retention | None:
        """What should not be forgotten, with its data read; asked for if the config wants it."""
        return None

    def answers(self) -> Answers | None:
        """What the network is to write before and after tuning, beside people; None for nothing."""
        return None

    def general_text(self, records: Records) -> Examples:
        """Texts without labels, as the network reads them; for penalties."""
        raise ValueError(f"{type(self).__name__} has no use for general text.")

    def features(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What a new head sees of each row, [rows, hidden]."""
        return network.features(batch)

    @property
    def wants_features(self) -> bool:
        """Whether `baselines` needs the pretrained network's features."""
        return False

    @property
    def has_baselines(self) -> bool:
        """Whether there is anything for the network to beat."""
        return self.wants_features

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

    def prediction_outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What predicting needs of each row, [rows, ...]; by default what scoring needs."""
        return self.outputs(network, batch)

    @property
    def prediction_fields(self) -> dict[str, str]:
        """Our names -> columns of a file of records to predict for."""
        return {}

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """What is predicted for each record, as JSON values.

        Args:
            outputs: what `prediction_outputs` gave for all examples.
            examples: that `prediction_examples` made of the records.
        """
        return []

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """One of `predictions` as lines for a person."""
        return [f"{name}: {value}" for name, value in prediction.items()]

    def marks(self, prediction: Mapping[str, Any]) -> dict[str, float]:
        """The labels that one of `predictions` gives, with their probabilities."""
        return {}

    def load(self, split: str, fields: Mapping[str, str]) -> Records:
        """The records of a split as the config names it; what limits them holds for training."""
        data = self.config.data
        if self._source is None:
            splits = [data[f"{name}_split"] for name in SPLITS]
            seed, group = data.split_seed, data.group_field
            division = Division(splits, data.shares, seed, group, fill=True)
            skips = data.on_bad_record == "skip"
            self._source = Source(data.source, division, skip_bad_records=skips)
        limit, shots = data.train_limit, data.get("shots")
        few = {"limit": limit, "shots": shots} if split == "train" else {}
        records = self._source.records(data[f"{split}_split"], fields, **few)
        if left_out := self._left_out.get(split):
            records = records.chosen(np.delete(np.arange(len(records)), list(left_out)))
        self._contents[split] = records.contents()
        return records

    def _note_source(self) -> None:
        """Notes how the data were read, and lets go of them.

        Raises:
            ValueError: the config says how to divide what comes with splits, or to draw where
                nothing is drawn.
        """
        source, data = self._source, self.config.data
        if source is None:
            return
        if not source.divided and (data.group_field or tuple(data.shares) != SHARES):
            raise ValueError(
                f"config.data.group_field and config.data.shares divide a source without splits, "
                f"and {data.source} has them; leave both out."
            )
        if data.split_seed != 0 and not (source.drawn or self.draws):
            raise ValueError(
                f"config.data.split_seed = {data.split_seed} changes nothing: nothing is drawn "
                f"from {data.source}, all of it is read as it comes. Leave it out."
            )
        self.notes[:0] = source.notes
        train = set(self._contents["train"])
        for split in ("validation", "test"):
            contents = self._contents[split]
            if equal := sum(content in train for content in contents):
                self.notes.append(
                    f"{split}: {equal:,} of {len(contents):,} records read exactly like one of "
                    "train, so that knowing them by heart scores"
                )
        self._unread = source.left_out
        self._source, self._contents = None, {}
