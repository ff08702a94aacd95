"""One run, from a config to a finished folder."""

import contextlib
import dataclasses
import functools
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ftjax.config import Config, flatten, validate
from ftjax.files import write_json_atomically
from ftjax.interrupt import Stopped
from ftjax.progress import shown_on
from ftjax.runs.folder import RunFolder
from ftjax.runs.manifest import finish_manifest, note_seconds, start_manifest
from ftjax.runs.result import Cost, Result
from ftjax.training.build import Parts, build
from ftjax.training.fit import Fitted, fit
from ftjax.training.measure import Measure
from ftjax.training.memory import peak_memory_bytes
from ftjax.training.phases import (
    make_measure,
    measure_before,
    over_features,
    test_intervals,
    train_head,
    with_anchors,
    with_reference,
    with_teacher,
)
from ftjax.training.tensorboard import require_event_writer
from ftjax.tuning.averaging import between
from ftjax.tuning.partition import Parameters, partition
from ftjax.tuning.tune import merge

# In which variables launchers say how many processes they start: Slurm (of the step, else of the
# whole job), Open MPI, MPICH, torchrun and JAX.
PROCESS_COUNTS = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_SIZE",),
    ("PMI_SIZE",),
    ("WORLD_SIZE",),
    ("JAX_NUM_PROCESSES",),
)


def run_folder_of(config: Config, root: str | Path = "runs") -> Path:
    """Where a config's run goes: <root>/<name>/<variant>/seed-<seed>."""
    return Path(root) / config.name / config.variant / f"seed-{config.seed}"


def run(
    config: Config, workdir: str | Path | None = None, console: Console | None = None
) -> Result:
    """Carries out one run, or continues it.

    Args:
        config: an experiment's, with overrides.
        workdir: the run folder; `run_folder_of` the config by default.
        console: for a person; nothing is printed by default.

    Returns:
        What is in the folder's result.json.

    Raises:
        Stopped: by a signal; it was saved and can be continued.
        ValueError, FileNotFoundError, OSError, RuntimeError: with a sentence on what to change.
    """
    started = time.perf_counter()
    validate(config)
    _refuse_several_processes()
    require_event_writer(config.training.tensorboard)
    console = console or Console(quiet=True)
    folder = RunFolder(workdir or run_folder_of(config))
    with folder.claimed(flatten(config)), shown_on(console):
        if (result := folder.result()) is not None:
            console.print(f"{folder.path} holds this run, finished. Its result:")
            return result
        parts = build(config, functools.partial(console.print, highlight=False))
        start_manifest(
            folder.path,
            config=flatten(config),
            weights=parts.weights,
            datasets=parts.datasets,
            devices=[f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        )
        tokens = parts.training_tokens
        folder.remember(
            "task",
            {
                "facts": parts.objective.facts,
                "training_tokens": None if tokens is None else tokens.tolist(),
            },
        )
        try:
            result = _train_and_score(config, folder, parts, console, started)
            folder.remember("result", result.to_json())
        except BaseException as error:
            # Where the disk is full, that is what to tell, and not that it cannot be noted.
            with contextlib.suppress(OSError):
                status = "stopped" if isinstance(error, Stopped) else "failed"
                finish_manifest(folder.path, status=status)
            raise
        finish_manifest(folder.path, status="finished")
    return result


def _train_and_score(
    config: Config, folder: RunFolder, parts: Parts, console: Console, started: float
) -> Result:
    def seconds() -> float:
        return note_seconds(folder.path, time.perf_counter() - started)

    # One for all phases, so that each function is compiled once.
    measure = make_measure(config, parts)
    parts = with_reference(folder, parts, measure, console)
    parts = with_teacher(config, folder, parts, console)
    features, before = measure_before(config, folder, parts, measure, console)
    seconds()
    if parts.only_head_moves:
        parts = over_features(parts, features)
    elif config.tuning.get("head_epochs", 0) > 0:
        head = train_head(config, folder, parts, features, console)
        parts = dataclasses.replace(parts, trainable=parts.trainable | head)
    fitted = fit(config, folder, with_anchors(config, parts, console), measure, console, seconds)
    metrics, outputs = _scores(parts, measure, before, fitted.best)
    intervals = before.get("intervals", {}) | test_intervals(parts.objective, outputs)
    details = parts.objective.details(outputs)
    if parts.answers is not None:
        after = measure(parts.answers.measurement, parts.parallel.place(fitted.best), ["test"])
        details["answers"] = parts.answers.side_by_side(before["answers"], after)
        metrics |= parts.answers.scores(before["answers"], after)
        intervals |= parts.answers.intervals(before["answers"], after)
    for name, value in parts.objective.written(outputs).items():
        write_json_atomically(folder.path / name, value)
    task = folder.recall("task") or {"facts": {}}
    facts = task["facts"] | parts.objective.learned_facts(outputs)
    folder.remember("task", {**task, "facts": facts})
    wise_ft = _wise_ft(config, parts, before, fitted.best)
    return Result(
        name=config.name,
        variant=config.variant,
        seed=config.seed,
        method=config.tuning.method,
        metrics=metrics | before["metrics"],
        steps=fitted.steps,
        best_step=fitted.progress.best_step,
        test_examples=len(parts.objective.examples["test"].lengths),
        cost=_cost(parts, fitted, seconds()),
        intervals={name: list(found) for name, found in intervals.items()},
        wise_ft=wise_ft,
        details=details
        | {
            "baseline_examples": before.get("baseline_examples", {}),
            "records_left_out": parts.objective.left_out,
        },
        notes=parts.objective.notes,
    )


def _scores(
    parts: Parts, measure: Measure, before: dict, trainable: Parameters
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All that is measured of a network, task and retention, and its outputs."""
    trainable = parts.parallel.place(trainable)
    measurement = parts.objective.measurement()
    kept = dataclasses.replace(measurement, score=lambda found: found)
    outputs = measure(kept, trainable, ["validation", "test"])
    metrics = measurement.score(outputs)
    if parts.retention is not None:
        after = measure(parts.retention.measurement, trainable)
        metrics |= parts.retention.compare(np.asarray(before["retention"]), after)
    return metrics, outputs


def _wise_ft(config: Config, parts: Parts, before: dict, best: Parameters) -> list[dict]:
    """Scores of the networks between the start and the tuned one, as plain networks."""
    alphas = config.averaging.get("wise_ft_alphas", ())
    if not alphas:
        return []
    frozen = parts.parallel.one_copy(parts.frozen)
    start = merge(parts.rebuild(parts.trainable, frozen))

    def network_at(alpha):
        tuned = merge(parts.rebuild(best, frozen))
        return partition(between(start, tuned, alpha), lambda path: True)

    rebuild, _, rest = network_at(1.0)
    size = config.evaluation.batch_size
    measure = Measure(parts.parallel, rebuild, parts.parallel.place(rest), size)

    def scores_at(alpha):
        parameters = parts.parallel.place(network_at(alpha)[1])
        solved = measure.solved(parts.objective.solved(), parameters)
        return _scores(parts, measure, before, parts.parallel.one_copy(solved))[0]

    return [{"alpha": alpha, "metrics": scores_at(alpha)} for alpha in alphas]


def _cost(parts: Parts, fitted: Fitted, seconds: float) -> Cost:
    clock = fitted.progress.clock
    trained = sum(leaf.size for leaf in parts.trainable.values())
    # int32 leaves say where something is.
    frozen = parts.parallel.one_copy(parts.frozen).values()
    return Cost(
        seconds=seconds,
        train_seconds=clock.train,
        compile_seconds=clock.compile,
        validation_seconds=clock.evaluate,
        checkpoint_seconds=clock.checkpoint,
        examples_per_second=clock.examples_per_second(),
        flops_per_step=clock.flops / max(fitted.steps, 1),
        peak_memory_bytes=peak_memory_bytes(),
        trainable_parameters=trained,
        parameters=trained + sum(leaf.size for leaf in frozen if leaf.dtype != jnp.int32),
    )


def _refuse_several_processes() -> None:
    """Two processes of one run would write the same files."""
    found = [next((n for n in names if os.environ.get(n)), None) for names in PROCESS_COUNTS]
    several = [f"{name}={os.environ[name]}" for name in found if name and os.environ[name] != "1"]
    if several or jax.process_count() > 1:
        raise RuntimeError(
            f"This run was started as several processes ({', '.join(several) or 'JAX'}); ftjax "
            "runs in one, on all devices that it sees. Start one process, such as srun --ntasks=1."
        )
