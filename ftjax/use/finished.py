"""What a finished run left: its best network, without the data it was trained on."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from ftjax.files import read_json
from ftjax.locate import sha256_of_folder
from ftjax.models.heads import LanguageModel
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.compare import Outputs, merged_and_compared
from ftjax.runs.folder import RunFolder
from ftjax.tasks.text_classification import classifier, classifier_network_name
from ftjax.training.checkpoint import Checkpoints
from ftjax.training.run import load_backbone
from ftjax.tuning import tune


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run, loaded.

    Attributes:
        config: the run's.
        facts: what its task wrote down, such as the names of the classes.
        base: the checkpoint folder it started from.
        backbone_name: which of the family's networks `network.backbone` is.
        network: the task's network with the best parameters.
    """

    config: ConfigDict
    facts: dict[str, Any]
    base: Path
    backbone_name: str
    network: nnx.Module


def load_finished_run(run: str | Path) -> FinishedRun:
    """Loads a run's best parameters onto the pretrained network they belong to.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: the pretrained weights are not those the run began with.
    """
    folder = RunFolder(run)
    config = folder.config()
    if folder.recall("result") is None:
        raise FileNotFoundError(
            f"The run in {run} is not finished; the command that started it continues it."
        )
    facts = folder.recall("task")
    base = checkpoint_folder(config.model.reference)
    _refuse_other_weights(folder, config.model.reference, base)
    if config.task == "causal_lm":
        name = "causal_lm"
        network = LanguageModel(load_backbone(config, base, name), config.model.logits_at_once)
    else:
        name = classifier_network_name(config, base)
        backbone = load_backbone(config, base, name)
        network = classifier(config, backbone, len(facts["classes"]), config.seed)
    tokens = folder.recall("training_tokens")
    rebuild, trainable, frozen = tune(network, config.tuning, config.seed, tokens)
    with Checkpoints(folder.checkpoints, keep_last=1_000) as checkpoints:
        _, best, _ = checkpoints.restore_best(trainable)
    return FinishedRun(config, facts, base, name, rebuild(best, frozen))


def merged_backbone(run: FinishedRun) -> tuple[nnx.Module, Outputs]:
    """The run's pretrained network merged into plain layers; see `merged_and_compared`."""
    return merged_and_compared(run.network, run.base)


def _refuse_other_weights(folder: RunFolder, reference: str, base: Path) -> None:
    expected = read_json(folder.path / "manifest.json")["weights_sha256"][reference]
    if sha256_of_folder(base) != expected:
        raise ValueError(
            f"{base} is not what the run in {folder.path} began with (SHA-256 differs). Bring back "
            f"the weights that {reference} meant then."
        )
