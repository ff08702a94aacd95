"""One run, from a config to a finished folder."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console

from ftjax.config import base_config, flatten, override, validate
from ftjax.locate import sha256_of_folder
from ftjax.models.layers import Compute
from ftjax.penalties.fisher import add_squared_gradients, normalised
from ftjax.penalties.penalties import FISHER, START, make_penalties
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.load import load_model, random_model
from ftjax.randomness import run_key
from ftjax.runs.folder import RunFolder
from ftjax.runs.manifest import finish_manifest, start_manifest
from ftjax.tasks import Task, make_task
from ftjax.tasks.general_text import GeneralText, Replay
from ftjax.training.checkpoint import Checkpoints, host_copy
from ftjax.training.features import CachedFeatures
from ftjax.training.interrupt import stop_on_signals
from ftjax.training.loop import Plan, Progress, train
from ftjax.training.memory import peak_memory_bytes
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.parallel import MeshParallel, PmapParallel, make_parallel
from ftjax.training.report import RunReport
from ftjax.training.score import Scorer
from ftjax.training.step import TrainState, make_train_step, new_state
from ftjax.tuning import Parameters, Rebuild, tune
from ftjax.tuning.averaging import interpolate, make_averaging
from ftjax.tuning.learning_rates import learning_rate_factors
from ftjax.tuning.masks import is_new
from ftjax.tuning.reinit import reinitialise_top
from ftjax.tuning.stages import make_stages, stage_of


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
        general: text for penalties that need some, or None.
        training_tokens: int, those whose rows of a token table are trained, or None for all.
    """

    task: Task
    parallel: MeshParallel | PmapParallel
    rebuild: Rebuild
    trainable: Parameters
    frozen: Parameters
    weights: dict[str, str]
    general: GeneralText | None = None
    training_tokens: np.ndarray | None = None

    @property
    def only_head_moves(self) -> bool:
        """Whether the pretrained network stays as it is, so that its features can be kept."""
        return all(map(is_new, self.trainable))


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
    general = GeneralText(config, task) if config.penalties.source else None
    backbone = load_backbone(config, folder, task.network_name)
    network = task.network(backbone, config.seed)
    tokens = _training_tokens(config, task, general)
    rebuild, trainable, frozen = tune(network, config.tuning, config.seed, tokens)
    _check_longest_row(config, task, rebuild, trainable, frozen)
    weights = {config.model.reference: sha256_of_folder(folder)}
    frozen = parallel.place(frozen)
    return Parts(task, parallel, rebuild, trainable, frozen, weights, general, tokens)


def _training_tokens(
    config: ConfigDict, task: Task, general: GeneralText | None
) -> np.ndarray | None:
    if config.tuning.embedding_rows == "all":
        return None
    tokens = [task.training_tokens()] + ([general.tokens()] if general else [])
    return np.unique(np.concatenate(tokens))


def load_backbone(config: ConfigDict, folder: Path, name: str) -> nnx.Module:
    """A pretrained network of a checkpoint folder, computed as the config says."""
    compute = Compute(
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.remat,
        scan_layers=config.model.scan_layers,
    )
    how = {
        "accept_fields": tuple(config.model.accept_fields),
        "dropout": config.model.dropout,
    }
    backbone = load_model(folder, name, compute, **how)
    if config.tuning.reinit_top > 0:
        fresh = random_model(folder, name, compute, run_key(config.seed, "reinit"), **how)
        reinitialise_top(backbone, fresh, config.tuning.reinit_top)
    return backbone


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
        datasets=parts.task.datasets | (parts.general.datasets if parts.general else {}),
        devices=[f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    )
    folder.remember("task", parts.task.facts())
    if parts.training_tokens is not None:
        folder.remember("training_tokens", parts.training_tokens.tolist())
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
    features, before = _before(config, folder, parts, console)
    scorer = _scorer(config, parts, features)
    if config.tuning.head_epochs > 0 and not parts.only_head_moves:
        head = _train_head(config, folder, parts, features, console)
        if head is None:
            return None
        parts = dataclasses.replace(parts, trainable=parts.trainable | head)
    outcome = _train(config, folder, _with_anchors(config, parts, console), scorer, console)
    if outcome is None:
        return None
    best, progress, steps = outcome
    scores = functools.partial(_scores, parts, scorer, before)
    clock = progress.clock
    trained = sum(leaf.size for leaf in parts.trainable.values())
    result = {
        "name": config.name,
        "variant": config.variant,
        "seed": config.seed,
        "title": f"fine-tuned ({config.tuning.method})",
        "test_examples": parts.task.count("test"),
        "metrics": scores(best) | before["metrics"],
        "best_step": progress.best_step,
        "steps": steps,
    }
    if config.averaging.wise_ft_alphas:
        result["wise_ft"] = [
            {"alpha": alpha, "metrics": scores(interpolate(parts.trainable, best, alpha))}
            for alpha in config.averaging.wise_ft_alphas
        ]
    result["cost"] = {
        "seconds": time.perf_counter() - started,
        "train_seconds": clock.train,
        "compile_seconds": clock.compile,
        "validation_seconds": clock.evaluate,
        "checkpoint_seconds": clock.checkpoint,
        "examples_per_second": clock.examples_per_second(),
        "flops_per_step": clock.flops / max(steps, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "trainable_parameters": trained,
        # int32 leaves say where something is.
        "parameters": trained
        + sum(leaf.size for leaf in parts.frozen.values() if leaf.dtype != jnp.int32),
    }
    return result


def _scorer(config: ConfigDict, parts: Parts, features: CachedFeatures | None) -> Scorer:
    cached = features if parts.only_head_moves else None
    return Scorer(config, parts.task, parts.parallel, parts.rebuild, parts.frozen, cached)


def _scores(parts: Parts, scorer: Scorer, before: dict, trainable: Parameters) -> dict[str, float]:
    """All that is measured of a network: task and retention."""
    trainable = parts.parallel.place(trainable)
    metrics = scorer.metrics("validation", trainable) | scorer.metrics("test", trainable)
    if "retention" in before:
        after = scorer.retention(trainable)
        metrics |= parts.task.retention.metrics(np.asarray(before["retention"]), after)
    return metrics


def _before(
    config: ConfigDict, folder: RunFolder, parts: Parts, console: Console
) -> tuple[CachedFeatures | None, dict]:
    """The pretrained network's features, and what training does not change, kept for a resume.

    The latter are JSON values: `metrics` of the baselines, and `retention` before.
    """
    needs_features = parts.only_head_moves or config.tuning.head_epochs > 0
    features, before = CachedFeatures.load(folder.path), folder.recall("before")
    if before is not None and (features is not None or not needs_features):
        return features, before
    console.print("Scoring the pretrained network and the baselines ...")
    scorer = _scorer(config, parts, None)
    start = parts.parallel.place(parts.trainable)
    before = {"metrics": {}}
    if parts.task.baselines is None:
        # Without baselines, a published network is its own.
        scores = scorer.metrics("test", start)
        before["metrics"] |= {k.replace("/", "/pretrained/"): v for k, v in scores.items()}
    elif config.evaluation.baselines or needs_features:
        features = scorer.features(start)
        if needs_features:
            features.save(folder.path)
        if config.evaluation.baselines:
            for name, scores in parts.task.baselines(features.features).items():
                before["metrics"] |= {f"test/{name}/{key}": v for key, v in scores.items()}
    if parts.task.retention is not None:
        before["retention"] = scorer.retention(start).tolist()
    folder.remember("before", before)
    return features, before


def _train_head(
    config: ConfigDict,
    folder: RunFolder,
    parts: Parts,
    features: CachedFeatures,
    console: Console,
) -> Parameters | None:
    """The new head, trained alone on cached features in `head/`; None if it was told to stop."""
    console.print(f"Training the head alone for {config.tuning.head_epochs} epochs ...")
    head = {path: value for path, value in parts.trainable.items() if is_new(path)}
    rest = {path: value for path, value in parts.trainable.items() if not is_new(path)}
    plain = base_config()
    alone = override(
        config,
        {
            "training.epochs": config.tuning.head_epochs,
            "training.max_steps": None,
            "tuning.unfreeze_epochs": None,
            **{
                name: value
                for name, value in flatten(plain).items()
                if name.startswith(("penalties.", "averaging."))
            },
        },
    )
    parts = dataclasses.replace(
        parts, trainable=head, frozen=parts.frozen | parts.parallel.place(rest)
    )
    head_folder = RunFolder(folder.path / "head")
    head_folder.path.mkdir(exist_ok=True)
    outcome = _train(alone, head_folder, parts, _scorer(alone, parts, features), console)
    return None if outcome is None else outcome[0]


def _with_anchors(config: ConfigDict, parts: Parts, console: Console) -> Parts:
    """What penalties compare with, beside the frozen parameters."""
    anchors = {}
    if make_penalties(config.penalties).needs_start:
        anchors |= {START + path: value for path, value in parts.trainable.items()}
    if config.penalties.ewc > 0:
        console.print("Measuring the Fisher information on general text ...")
        fisher = _fisher_information(config, parts)
        anchors |= {FISHER + path: value for path, value in fisher.items()}
    return dataclasses.replace(parts, frozen=parts.frozen | parts.parallel.place(anchors))


def _fisher_information(config: ConfigDict, parts: Parts) -> Parameters:
    frozen = parts.parallel.one_copy(parts.frozen)
    key, size = run_key(config.seed, "fisher"), config.evaluation.batch_size

    @functools.partial(jax.jit, donate_argnums=0)
    def add(total, trainable, frozen, batch, key):
        return add_squared_gradients(
            total, lambda values: parts.rebuild(values, frozen), trainable, batch, key
        )

    total = {path: jnp.zeros(v.shape, jnp.float32) for path, v in parts.trainable.items()}
    for start in range(0, parts.general.count, size):
        indices = np.arange(start, min(start + size, parts.general.count))
        batch = parts.general.rows(indices, config.data.buckets[-1])
        batch.pop("example_ids", None)
        key, batch_key = jax.random.split(key)
        total = add(total, parts.trainable, frozen, batch, batch_key)
    return normalised(total)


def _train(
    config: ConfigDict, folder: RunFolder, parts: Parts, scorer: Scorer, console: Console
) -> tuple[Parameters, Progress, int] | None:
    """The best parameters, where the run stands and its steps; None if it was told to stop."""
    plan = _plan(config, parts.task)
    stages = make_stages(parts.trainable, config.tuning)
    schedule = make_schedule(config.optimizer, plan.total_steps)
    optimizer = make_optimizer(
        config.optimizer,
        schedule,
        parts.trainable,
        factors=learning_rate_factors(config.optimizer, config.tuning, list(parts.trainable)),
        groups=[stage.joining for stage in stages],
    )
    averages = config.averaging.method != "none"
    state = new_state(config.seed, parts.trainable, optimizer, averages=averages)
    progress = Progress()
    say = functools.partial(console.print, highlight=False)
    settings = {"keep_last": config.training.keep_checkpoints, "warn": say}
    with Checkpoints(folder.checkpoints, **settings) as checkpoints:
        if (saved := checkpoints.restore(state)) is not None:
            step, state, values = saved
            progress = Progress.from_json(values)
            say(f"Continuing from step {step}.")
        folder.forget_after(int(state.step))
        steps = [
            make_train_step(
                parts.rebuild,
                parts.task.loss,
                optimizer,
                schedule,
                penalties=make_penalties(config.penalties),
                averaging=make_averaging(config.averaging, plan.total_steps),
                moving=stage.moving,
                accumulation_steps=config.optimizer.accumulation_steps,
                axis_name=parts.parallel.axis_name,
            )
            for stage in stages
        ]
        with stop_on_signals() as stop, RunReport(folder, plan.total_steps, console) as report:
            state, finished = train(
                # A copy: the step reuses its memory, and the start values are needed again.
                parts.parallel.place(host_copy(state)),
                parts.frozen,
                progress,
                plan=plan,
                steps=steps,
                stage_of=functools.partial(stage_of, stages),
                parallel=parts.parallel,
                batches=functools.partial(_epoch_batches, config, parts, scorer.cached),
                validate=functools.partial(_validate, config, scorer),
                checkpoints=checkpoints,
                report=report,
                stop=stop,
            )
        done = int(parts.parallel.one_copy(state).step)
        checkpoints.wait()
        if not finished:
            say(
                f"Stopped by {stop.requested} at step {done} of {plan.total_steps}; all is saved. "
                "The same command continues from there."
            )
            return None
        _, best, _ = checkpoints.restore_best(parts.trainable)
        return best, progress, done


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


def _epoch_batches(
    config: ConfigDict, parts: Parts, cached: CachedFeatures | None, epoch: int
) -> list[Callable]:
    size = config.data.batch_size
    replay = None
    if config.penalties.replay > 0:
        multiple = parts.parallel.batch_multiple * config.optimizer.accumulation_steps
        replay = Replay(parts.general, config.penalties.replay_share, config.seed, multiple)

    def make(index: int, plan: Any) -> dict[str, np.ndarray]:
        batch = parts.task.make("train", size, plan)
        if cached is not None:
            return cached.batch("train", batch)
        return batch if replay is None else replay.add(batch, epoch, index)

    plans = parts.task.plan("train", size, epoch=epoch)
    return [functools.partial(make, index, plan) for index, plan in enumerate(plans)]


def _validate(
    config: ConfigDict, scorer: Scorer, state: TrainState
) -> tuple[float, dict[str, float]]:
    metrics = scorer.metrics("validation", state.scored)
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


def _check_longest_row(
    config: ConfigDict, task: Task, rebuild: Rebuild, trainable: Parameters, frozen: Parameters
) -> None:
    """A row without positions for its tokens is found now, and not when its batch comes."""
    size = config.evaluation.batch_size
    plans = [(s, p) for s in ("train", "validation", "test") for p in task.plan(s, size)]
    split, plan = max(plans, key=lambda item: item[1].length)
    batch = task.make(split, size, plan)

    def outputs(trainable, frozen, batch):
        return task.outputs(rebuild(trainable, frozen), batch)

    try:
        jax.eval_shape(outputs, trainable, frozen, batch)
    except ValueError as error:
        end = config.data.buckets[-1]
        raise ValueError(f"config.data.buckets ends at {end}. {error}") from error
