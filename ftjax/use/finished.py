"""What a finished run left: its best network, without the data it was trained on."""

import dataclasses
from pathlib import Path

from ftjax.config import Config, config_of
from ftjax.files import read_checked_json
from ftjax.locate import sha256_of_folder
from ftjax.models.layers import Network
from ftjax.objectives import OBJECTIVES, Objective
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.runs.folder import RunFolder
from ftjax.runs.result import Result
from ftjax.training.build import load_network
from ftjax.training.checkpoint import Checkpoints
from ftjax.tuning.tune import tune


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run, loaded.

    Attributes:
        folder: the run's.
        config: the run's.
        objective: what it learned, without its data.
        base: the checkpoint folder it started from.
        network: the objective's network with the best parameters.
        result: what it found.
    """

    folder: RunFolder
    config: Config
    objective: Objective
    base: Path
    network: Network
    result: Result


def load_finished_run(run: str | Path, *, accept_fields: tuple[str, ...] = ()) -> FinishedRun:
    """Loads a run's best parameters onto the pretrained network they belong to.

    Args:
        run: its folder.
        accept_fields: fields of the checkpoint's config.json to ignore, besides those that the
            run's config names.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: the pretrained weights are not those the run began with, or a file is damaged.
    """
    folder = RunFolder(run)
    config = config_of(folder.config())
    config.set("model.accept_fields", (*config.model.accept_fields, *accept_fields))
    result = folder.result()
    if result is None:
        raise FileNotFoundError(
            f"The run in {run} is not finished; the command that started it continues it."
        )
    task = read_checked_json(folder.path / "task.json")
    base = checkpoint_folder(config.model.reference)
    _refuse_other_weights(folder, config.model.reference, base)
    objective = OBJECTIVES[config.objective.name](config, base, task["facts"])
    network = load_network(config, objective)
    rebuild, trainable, frozen = tune(network, config.tuning, config.seed, task["training_tokens"])
    with Checkpoints(folder.checkpoints, keep_last=1_000) as checkpoints:
        best = checkpoints.restore_best(trainable, result.best_step)
    return FinishedRun(folder, config, objective, base, rebuild(best, frozen), result)


def _refuse_other_weights(folder: RunFolder, reference: str, base: Path) -> None:
    expected = read_checked_json(folder.path / "manifest.json")["weights_sha256"].get(reference)
    if sha256_of_folder(base) != expected:
        raise ValueError(
            f"{base} is not what the run in {folder.path} began with (SHA-256 differs). Bring back "
            f"the weights that {reference} meant then."
        )
