"""One run, from a config to a finished folder."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console

from ftjax.config import flatten, validate
from ftjax.models.layers import Compute
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.load import load_model
from ftjax.pretrained.locate import sha256_of_folder
from ftjax.provenance.manifest import finish_manifest, start_manifest
from ftjax.tasks import Task, make_task
from ftjax.training.checkpoint import Checkpoints
from ftjax.training.interrupt import stop_on_signals
from ftjax.training.loop import Plan, Progress, train
from ftjax.training.memory import peak_memory_bytes
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.parallel import MeshParallel, PmapParallel, make_parallel
from ftjax.training.report import RunReport
from ftjax.training.run_folder import RunFolder
from ftjax.training.score import Scorer
from ftjax.training.step import TrainState, make_train_step, new_state
from ftjax.tuning import METHODS, Parameters, Rebuild, partition


@dataclasses.dataclass
class Parts:
    """What a run is made of, between a config and a loop.

    Attributes:
        task: data, head, loss, scores.
        parallel: how functions are mapped over devices.
        rebuild: (trainable, frozen) -> network.
        trainable: at their start values, on the host's default device.
        frozen: on the devices.
        weights: reference -> SHA-256 of the pretrained weights.
    """

    task: Task
    parallel: MeshParallel | PmapParallel
    rebuild: Rebuild
    trainable: Parameters
    frozen: Parameters
    weights: dict[str, str]


def run_folder_of(config: ConfigDict, root: str | Path = "runs") -> Path:
    """Where a config's run goes: <root>/<name>/<variant>/seed-<seed>."""
    return Path(root) / config.name / config.variant / f"seed-{config.seed}"


def build(config: ConfigDict) -> Parts:
    """Loads data and weights and splits the network into what moves and what stays.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: with a sentence on what to change.
    """
    parallel = make_parallel(config.training)
    _check_batch_sizes(config, parallel.batch_multiple)
    folder = checkpoint_folder(config.model.reference)
    task = make_task(config, folder)
    network = task.network(load_backbone(config, folder, task.network_name), config.seed)
    is_trainable = METHODS[config.tuning.method](network)
    rebuild, trainable, frozen = partition(network, is_trainable)
    weights = {config.model.reference: sha256_of_folder(folder)}
    return Parts(task, parallel, rebuild, trainable, parallel.place(frozen), weights)


def load_backbone(config: ConfigDict, folder: Path, name: str) -> nnx.Module:
    """A pretrained network of a checkpoint folder, computed as the config says."""
    compute = Compute(
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.remat,
        scan_layers=config.model.scan_layers,
    )
    return load_model(
        folder,
        name,
        compute,
        accept_fields=tuple(config.model.accept_fields),
        dropout=config.model.dropout,
    )


def run(config: ConfigDict, workdir: str | Path, console: Console) -> dict | None:
    """Carries out one run, or continues it, and returns what is in its result.json.

    Args:
        config: an experiment's, with overrides.
        workdir: the run folder.
        console: for a person.

    Returns:
        The result; None if the run was stopped by a signal (it was saved and can be continued).

    Raises:
        ValueError, FileNotFoundError, OSError, RuntimeError: with a sentence on what to change.
    """
    validate(config)
    folder = RunFolder(workdir)
    folder.claim(config)
    if (result := folder.recall("result")) is not None:
        console.print(f"{workdir} holds this run, finished. Its result:")
        return result
    parts = build(config)
    for note in parts.task.notes:
        console.print(note, highlight=False)
    start_manifest(
        folder.path,
        config=flatten(config),
        weights=parts.weights,
        datasets=parts.task.datasets,
        devices=[f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    )
    folder.remember("task", parts.task.facts())
    status = "failed"
    try:
        result = _train_and_score(config, folder, parts, console)
        status = "finished" if result is not None else "stopped"
    finally:
        finish_manifest(folder.path, status=status)
    if result is not None:
        folder.remember("result", result)
    return result


def _train_and_score(
    config: ConfigDict, folder: RunFolder, parts: Parts, console: Console
) -> dict | None:
    started = time.perf_counter()
    scorer = Scorer(config, parts.task, parts.parallel, parts.rebuild, parts.frozen)
    before = folder.recall("before")
    if before is None:
        console.print("Scoring the pretrained network and the baselines ...")
        before = scorer.before(parts.trainable)
        folder.remember("before", before)
    outcome = _train(config, folder, parts, scorer, console)
    if outcome is None:
        return None
    best, progress, steps = outcome
    trainable = parts.parallel.place(best)
    metrics = scorer.metrics("validation", trainable) | scorer.metrics("test", trainable)
    metrics |= before["metrics"]
    if "retention" in before:
        kept = np.asarray(before["retention"]), scorer.retention(trainable)
        metrics |= parts.task.retention.metrics(*kept)
    clock = progress.clock
    trained = sum(leaf.size for leaf in parts.trainable.values())
    return {
        "name": config.name,
        "variant": config.variant,
        "seed": config.seed,
        "title": f"fine-tuned ({config.tuning.method})",
        "test_examples": parts.task.count("test"),
        "metrics": metrics,
        "best_step": progress.best_step,
        "steps": steps,
        "cost": {
            "seconds": time.perf_counter() - started,
            "train_seconds": clock.train,
            "compile_seconds": clock.compile,
            "validation_seconds": clock.evaluate,
            "checkpoint_seconds": clock.checkpoint,
            "examples_per_second": clock.examples_per_second(),
            "peak_memory_bytes": peak_memory_bytes(),
            "trainable_parameters": trained,
            "parameters": trained + sum(leaf.size for leaf in parts.frozen.values()),
        },
    }


def _train(
    config: ConfigDict, folder: RunFolder, parts: Parts, scorer: Scorer, console: Console
) -> tuple[Parameters, Progress, int] | None:
    """The best parameters, where the run stands and its steps; None if it was told to stop."""
    plan = _plan(config, parts.task)
    schedule = make_schedule(config.optimizer, plan.total_steps)
    optimizer = make_optimizer(config.optimizer, schedule, parts.trainable)
    state, progress = new_state(config.seed, parts.trainable, optimizer), Progress()
    say = functools.partial(console.print, highlight=False)
    settings = {"keep_last": config.training.keep_checkpoints, "warn": say}
    with Checkpoints(folder.checkpoints, **settings) as checkpoints:
        if (saved := checkpoints.restore(state)) is not None:
            step, state, values = saved
            progress = Progress.from_json(values)
            say(f"Continuing from step {step}.")
        folder.forget_after(int(state.step))
        step = make_train_step(
            parts.rebuild,
            parts.task.loss,
            optimizer,
            schedule,
            accumulation_steps=config.optimizer.accumulation_steps,
            axis_name=parts.parallel.axis_name,
        )
        with stop_on_signals() as stop, RunReport(folder, plan.total_steps, console) as report:
            state, finished = train(
                parts.parallel.place(state),
                parts.frozen,
                progress,
                plan=plan,
                step=step,
                parallel=parts.parallel,
                batches=functools.partial(_epoch_batches, config, parts.task),
                validate=functools.partial(_validate, config, scorer),
                checkpoints=checkpoints,
                report=report,
                stop=stop,
            )
        steps = int(parts.parallel.host_state(state).step)
        if not finished:
            checkpoints.wait()
            say(
                f"Stopped by {stop.requested} at step {steps} of {plan.total_steps}; all is saved. "
                "The same command continues from there."
            )
            return None
        checkpoints.wait()
        _, best, _ = checkpoints.restore_best(parts.trainable)
        return best, progress, steps


def _plan(config: ConfigDict, task: Task) -> Plan:
    per_epoch = len(task.plan("train", config.data.batch_size, epoch=0))
    total = per_epoch * config.training.epochs
    if config.training.max_steps is not None:
        total = min(total, config.training.max_steps)
    return Plan(
        total_steps=total,
        validate_every=config.evaluation.every or per_epoch,
        checkpoint_every=config.training.checkpoint_every,
        log_every=config.training.log_every,
        patience=config.evaluation.patience,
    )


def _epoch_batches(config: ConfigDict, task: Task, epoch: int) -> list[Callable]:
    size = config.data.batch_size
    plans = task.plan("train", size, epoch=epoch)
    return [functools.partial(task.make, "train", size, plan) for plan in plans]


def _validate(
    config: ConfigDict, scorer: Scorer, state: TrainState
) -> tuple[float, dict[str, float]]:
    metrics = scorer.metrics("validation", state.trainable)
    score = metrics[f"validation/{config.evaluation.metric}"]
    lower_is_better = config.evaluation.metric in ("loss", "perplexity")
    return (-score if lower_is_better else score), metrics


def _check_batch_sizes(config: ConfigDict, multiple: int) -> None:
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
