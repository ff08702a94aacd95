"""From a config to the parts of a run: the last place that sees the whole config."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.config import Config
from ftjax.data.examples import Examples, plan
from ftjax.data.sources import load_records
from ftjax.data.text import required_rows
from ftjax.evaluation.measurement import Retention
from ftjax.locate import sha256_of_folder
from ftjax.models.layers import Compute
from ftjax.objectives import OBJECTIVES, Objective
from ftjax.objectives.base import SPLITS
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.load import load_model, random_model
from ftjax.randomness import run_key
from ftjax.training.parallel import MeshParallel, PmapParallel, make_parallel
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
        return all(map(is_new, self.trainable))

    @property
    def datasets(self) -> dict[str, str]:
        """SHA-256 of all data by what it is for."""
        found = {name: e.fingerprint for name, e in self.objective.examples.items()}
        if self.retention is not None:
            examples = self.retention.measurement.examples
            found |= {f"retention/{name}": e.fingerprint for name, e in examples.items()}
        return found | ({"general": self.general.fingerprint} if self.general else {})


def build(config: Config, say: Callable[[str], None] = lambda sentence: None) -> Parts:
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
    objective.read()
    for note in objective.notes:
        say(note)
    general, retention = _general_text(config, objective), objective.retention()
    tokens = _training_tokens(config, objective, general)
    network = load_network(config, objective, say)
    rebuild, trainable, frozen = tune(network, config.tuning, config.seed, tokens)
    _check_longest_row(config, objective, rebuild, trainable, frozen)
    _check_r_drop(config, network)
    return Parts(
        objective=objective,
        retention=retention,
        general=general,
        parallel=parallel,
        rebuild=rebuild,
        trainable=trainable,
        frozen=parallel.place(frozen),
        weights={config.model.reference: sha256_of_folder(folder)},
        training_tokens=tokens,
    )


def load_network(
    config: Config, objective: Objective, say: Callable[[str], None] | None = None
) -> nnx.Module:
    """The objective's network over the pretrained one, computed as the config says.

    Args:
        config: validated.
        objective: of the same config.
        say: told what of the checkpoint was left behind.
    """
    folder, name = objective.folder, objective.network_name
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
    rows = required_rows(objective.tokenizer) if config.model.grow_table else None
    backbone = load_model(folder, name, compute, rows=rows, say=say, **how)
    if (blocks := config.tuning.get("reinit_top", 0)) > 0:
        fresh = random_model(folder, name, compute, run_key(config.seed, "reinit"), **how)
        reinitialise_top(backbone, fresh, blocks)
    return objective.network(backbone)


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


def _check_r_drop(config: Config, network: nnx.Module) -> None:
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


def _check_longest_row(
    config: Config,
    objective: Objective,
    rebuild: Rebuild,
    trainable: Parameters,
    frozen: Parameters,
) -> None:
    """A row without positions for its tokens is found now, and not when its batch comes."""
    size = config.evaluation.batch_size
    splits = [objective.examples[name] for name in SPLITS]
    planned = [(examples, batch) for examples in splits for batch in plan(examples, size)]
    examples, longest = max(planned, key=lambda item: item[1].length)
    batch = examples.batch(longest.indices, rows=size, length=longest.length)

    def outputs(trainable, frozen, batch):
        return objective.outputs(rebuild(trainable, frozen), batch)

    try:
        jax.eval_shape(outputs, trainable, frozen, batch)
    except ValueError as error:
        raise ValueError(f"Rows of {longest.length} tokens do not fit. {error}") from error
