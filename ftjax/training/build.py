"""From a config to the parts of a run: the last place that sees the whole config."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.text import Text

from ftjax.config import Config
from ftjax.data.batching import BatchPlan
from ftjax.data.examples import Examples, plan
from ftjax.data.sources import load_records
from ftjax.data.tokenizer import required_rows
from ftjax.evaluation.answers import Answers
from ftjax.evaluation.measurement import Retention
from ftjax.locate import sha256_of_folder
from ftjax.models.layers import Compute, Network
from ftjax.objectives import OBJECTIVES, Objective
from ftjax.objectives.base import SPLITS
from ftjax.objectives.teachers import teacher_folder
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.load import load_model, random_model
from ftjax.randomness import run_key
from ftjax.training.parallel import MeshParallel, PmapParallel, make_parallel
from ftjax.training.plan import make_plan, never_reached
from ftjax.tuning.masks import is_new
from ftjax.tuning.partition import Parameters, Rebuild
from ftjax.tuning.reinit import reinitialise_top
from ftjax.tuning.tune import tune


@dataclasses.dataclass
class Parts:
    """What a run is made of, between a config and a loop.

    Attributes:
        objective: data, head, loss, scores.
        retention: what should not be forgotten, or None.
        answers: what is written before and after tuning, or None.
        general: text for penalties that need some, or None.
        parallel: how functions are mapped over devices.
        rebuild: (trainable, frozen) -> network.
        trainable: at their start values, on the host's default device.
        frozen: on the devices.
        weights: reference -> SHA-256 of the pretrained weights.
        training_tokens: int, those whose rows of a token table are trained, or None for all.
    """

    objective: Objective
    retention: Retention | None
    answers: Answers | None
    general: Examples | None
    parallel: MeshParallel | PmapParallel
    rebuild: Rebuild
    trainable: Parameters
    frozen: Parameters
    weights: dict[str, str]
    training_tokens: np.ndarray | None

    @property
    def only_head_moves(self) -> bool:
        """Whether the pretrained network stays as it is, so that its features can be kept."""
        return self.objective.keeps_features and all(map(is_new, self.trainable))

    @property
    def datasets(self) -> dict[str, str]:
        """SHA-256 of all data by what it is for."""
        found = {name: e.fingerprint for name, e in self.objective.examples.items()}
        if self.retention is not None:
            examples = self.retention.measurement.examples
            found |= {f"retention/{name}": e.fingerprint for name, e in examples.items()}
        found |= {"general": self.general.fingerprint} if self.general else {}
        return found | self.objective.fingerprints


def build(config: Config, say: Callable[[str | Text], None] = lambda sentence: None) -> Parts:
    """Loads data and weights and splits the network into what moves and what stays.

    Args:
        config: validated.
        say: told what a person should know.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: with a sentence on what to change.
    """
    parallel = make_parallel(config.training)
    _check_batch_sizes(config, parallel.batch_multiple)
    folder = checkpoint_folder(config.model.reference)
    objective = OBJECTIVES[config.objective.name](config, folder)
    _check_undivided(config, objective, parallel)
    objective.read()
    first_epoch = objective.epoch_examples(0)
    planned = make_plan(config, first_epoch, objective.updates)
    for note in objective.notes:
        say(note)
    if (shown := objective.shown_example()) is not None:
        say(shown)
    general = _general_text(config, objective)
    measures_retention = "retention.enabled" in config.fields and config.retention.enabled
    retention = objective.retention() if measures_retention else None
    answers = objective.answers()
    tokens = _training_tokens(config, objective, general)
    network = load_network(config, objective, say)
    rebuild, trainable, frozen = tune(network, config.tuning, config.seed, tokens)
    late = never_reached(config, planned, list(trainable))
    objective.notes += late
    for note in late:
        say(note)
    read = [(objective.examples[name], objective.outputs) for name in SPLITS]
    if first_epoch is not objective.examples["train"]:
        read.append((first_epoch, objective.features))
    if general is not None:
        read.append((general, objective.features))
    for further in (retention, answers):
        if further is not None:
            measurement = further.measurement
            read += [(examples, measurement.outputs) for examples in measurement.examples.values()]
    longest = _longest_row(read, config.evaluation.batch_size, rebuild, trainable, frozen)
    made_for = getattr(getattr(network.backbone, "config", None), "longest_row", None)
    if made_for is not None and longest > made_for:
        say(
            f"Rows of {longest:,} tokens are longer than the {made_for:,} that config.json says "
            "the network is for (max_position_embeddings, and what its rope scaling makes of "
            "them); they are read all the same, but nothing is written beyond that length."
        )
    _check_r_drop(config, network)
    return Parts(
        objective=objective,
        retention=retention,
        answers=answers,
        general=general,
        parallel=parallel,
        rebuild=rebuild,
        trainable=trainable,
        frozen=parallel.place(frozen),
        weights=_weights(config, folder),
        training_tokens=tokens,
    )


def load_network(
    config: Config, objective: Objective, say: Callable[[str], None] | None = None
) -> Network:
    """The objective's network over the pretrained one, computed as the config says.

    Args:
        config: validated.
        objective: of the same config.
        say: told what of the checkpoint was left behind.
    """
    folder, name = objective.folder, objective.network_name
    checkpoint = objective.checkpoint(say or (lambda sentence: None))
    compute = Compute(
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.remat,
        scan_layers=config.model.scan_layers,
    )
    how = {
        "accept_fields": tuple(config.model.accept_fields),
        "dropout": config.model.get("dropout"),
    }
    grows = config.model.get("grow_table", False)
    rows = required_rows(objective.tokenizer) if grows else None
    backbone = load_model(checkpoint, name, compute, rows=rows, say=say, **how)
    if (blocks := config.tuning.get("reinit_top", 0)) > 0:
        fresh = random_model(folder, name, compute, run_key(config.seed, "reinit"), **how)
        reinitialise_top(backbone, fresh, blocks)
    return objective.network(backbone)


def _weights(config: Config, folder: Path) -> dict[str, str]:
    """SHA-256 of the pretrained weights in the folder, and of a teacher's, by reference."""
    found = {config.model.reference: sha256_of_folder(folder)}
    if (of_teacher := teacher_folder(config)) is not None:
        found[config.teacher.reference] = sha256_of_folder(of_teacher)
    return found


def _general_text(config: Config, objective: Objective) -> Examples | None:
    penalties = config.penalties
    if penalties.get("source") is None:
        return None
    fields = {"text": penalties.text_field}
    records = load_records(
        penalties.source, split=penalties.split, fields=fields, limit=penalties.limit
    )
    return objective.general_text(records)


def _training_tokens(
    config: Config, objective: Objective, general: Examples | None
) -> np.ndarray | None:
    """The tokens whose rows move; None for all. Where no table moves, it makes no difference."""
    if config.tuning.get("embedding_rows", "all") == "all":
        return None
    read = [objective.examples["train"], *([general] if general else [])]
    return np.unique(np.concatenate([examples.token_ids() for examples in read]))


def _check_batch_sizes(config: Config, multiple: int) -> None:
    sizes = {
        "config.data.batch_size / config.optimizer.accumulation_steps": config.data.batch_size
        // config.optimizer.accumulation_steps,
        "config.evaluation.batch_size": config.evaluation.batch_size,
    }
    for name, size in sizes.items():
        if size % multiple:
            raise ValueError(
                f"{name} = {size} must be a multiple of the {multiple} devices that share a batch."
            )


def _check_undivided(
    config: Config, objective: Objective, parallel: MeshParallel | PmapParallel
) -> None:
    """Parts of a batch do not see each other."""
    parts = config.optimizer.accumulation_steps > 1
    apart = parallel.axis_name is not None and parallel.batch_multiple > 1
    if objective.rows_meet and (parts or apart):
        what = "config.optimizer.accumulation_steps > 1" if parts else "config.training.parallel"
        has_parts = "objective.mini_batch_size" in config.fields
        remedy = "config.objective.mini_batch_size" if has_parts else "config.model.remat = 'block'"
        raise ValueError(
            f"The loss of {config.objective.name} compares the rows of a batch with each other, "
            f"and {what} would divide it into parts that do not meet. Leave accumulation_steps at "
            f"1 and parallel at 'mesh'; if memory is short, set {remedy}."
        )


def _check_r_drop(config: Config, network: Network) -> None:
    """Without dropout, two passes agree always."""
    rates = [
        value
        for _, module in nnx.iter_modules(network)
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float)
    ]
    if config.penalties.r_drop > 0 and not any(rate > 0 for rate in rates):
        raise ValueError(
            "config.penalties.r_drop compares two dropout masks, and no dropout rate of this "
            "network is above 0: set config.model.dropout."
        )


def _longest_row(
    read: Sequence[tuple[Examples, Callable]],
    size: int,
    rebuild: Rebuild,
    trainable: Parameters,
    frozen: Parameters,
) -> int:
    """Tokens of the longest row; one that does not fit is found now, not when its batch comes.

    Args:
        read: examples, and the (network, batch) -> outputs that reads them.
        size: rows of a batch.
        rebuild: (trainable, frozen) -> network.
        trainable: its parameters.
        frozen: its parameters.

    Raises:
        ValueError: names the length.
    """
    longest: dict[Callable, tuple[int, Examples, BatchPlan]] = {}
    for examples, outputs in read:
        for batch in plan(examples, size):
            if batch.length > longest.get(outputs, (0,))[0]:
                longest[outputs] = (batch.length, examples, batch)
    for outputs, (length, examples, planned) in longest.items():
        batch = examples.batch(planned.indices, rows=size, length=length)

        def call(trainable, frozen, batch, outputs=outputs):
            return outputs(rebuild(trainable, frozen), batch)

        try:
            jax.eval_shape(call, trainable, frozen, batch)
        except ValueError as error:
            raise ValueError(f"Rows of {length} tokens do not fit. {error}") from error
    return max(length for length, _, _ in longest.values())
