"""One run's training: steps, validation, checkpoints, early stopping, and a clean way to stop."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ftjax.interrupt import StopRequest
from ftjax.training.checkpoint import Checkpoints
from ftjax.training.parallel import MeshParallel, PmapParallel
from ftjax.training.plan import Plan
from ftjax.training.step import TrainState, TrainStep
from ftjax.tuning.partition import Parameters

PENDING_STEPS = 2
"""Metrics are read this many steps late, so that the host never waits for the device."""


class Reporter(Protocol):
    """Who is told how the run goes; see `ftjax.training.report`."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Deterministic metrics of a step, for metrics.jsonl."""

    def logged(self) -> int:
        """CRC-32 of metrics.jsonl so far."""
        ...

    def progress(self, step: int, metrics: dict[str, float], clock: "Clock") -> None:
        """For the live line."""

    def say(self, message: str) -> None:
        """A sentence for the person."""


@dataclasses.dataclass
class Clock:
    """Where the time went, in seconds, summed over restarts.

    Attributes:
        compile: building programs.
        train: steps, without what is below.
        evaluate: validation.
        checkpoint: what saving held the loop up.
        examples: real examples trained on.
        flops: floating-point operations of the steps, as the compiled programs count them.
    """

    compile: float = 0.0
    train: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0
    examples: int = 0
    flops: float = 0.0

    def examples_per_second(self) -> float:
        """Training speed without compilation, validation and checkpoints."""
        return self.examples / self.train if self.train > 0 else 0.0


@dataclasses.dataclass
class Progress:
    """Where a run stands, beside the TrainState; saved with every checkpoint.

    Attributes:
        epoch: the epoch of the next batch.
        batch: index of the next batch within it.
        best_score: of the validations so far, higher is better.
        best_step: the step it was reached at; -1 for none.
        stale_validations: validations since then.
        finished: whether training is over (schedule done, or stopped early).
        logged: CRC-32 of metrics.jsonl so far.
        rollout: what the next step learns from, if that was made before an earlier one.
        clock: the seconds of all sessions so far.
    """

    epoch: int = 0
    batch: int = 0
    best_score: float | None = None
    best_step: int = -1
    stale_validations: int = 0
    finished: bool = False
    logged: int = 0
    rollout: dict[str, Any] | None = None
    clock: Clock = dataclasses.field(default_factory=Clock)

    def to_json(self) -> dict:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Progress":
        """The inverse of `to_json`."""
        return cls(**{**values, "clock": Clock(**values["clock"])})


class DivergedError(RuntimeError):
    """A number of the run is none any more."""


class CompiledByShape:
    """A mapped function, compiled ahead of time once per batch shape, so that the cost is known.

    Attributes:
        flops: batch shape -> floating-point operations of one call, where the backend counts them.
    """

    def __init__(self, function: Callable, clock: Clock):
        self._function: Any = function
        self._clock = clock
        self._compiled: dict[tuple, Callable] = {}
        self.flops: dict[tuple, float] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the program for the shape of the last argument, the batch."""
        shape = self.shape_of(arguments[-1])
        if shape not in self._compiled:
            start = time.perf_counter()
            compiled = self._function.lower(*arguments).compile()
            self._clock.compile += time.perf_counter() - start
            self._compiled[shape] = compiled
            self.flops[shape] = float((compiled.cost_analysis() or {}).get("flops", math.nan))
        return self._compiled[shape](*arguments)

    @staticmethod
    def shape_of(batch: dict[str, Any]) -> tuple:
        """What a batch's program depends on."""
        return tuple(sorted((name, array.shape) for name, array in batch.items()))


def train(
    state: TrainState,
    frozen: Parameters,
    progress: Progress,
    *,
    plan: Plan,
    steps: Sequence[TrainStep],
    stage_of: Callable[[int], int],
    parallel: MeshParallel | PmapParallel,
    batches: Callable[[int], Sequence[Callable[[], dict[str, np.ndarray]]]],
    prepare: Callable[[TrainState, int, dict[str, np.ndarray]], dict[str, np.ndarray]],
    validate: Callable[[TrainState], tuple[float, dict[str, float], Parameters]],
    checkpoints: Checkpoints,
    report: Reporter,
    stop: StopRequest,
    on_save: Callable[[], object] = lambda: None,
) -> TrainState:
    """Trains from where `state` and `progress` stand until done, stopped early, or told to stop.

    Args:
        state: on the devices; its memory is reused.
        frozen: parameters that do not move, on the devices.
        progress: changed in place.
        plan: what to do when.
        steps: from `make_train_step`, one per stage of training.
        stage_of: epoch -> index of its stage.
        parallel: how it is mapped over devices.
        batches: epoch -> its batches, each made when it is called; the same for the same epoch,
            always. `example_ids` in a batch says which records it holds, -1 for none.
        prepare: (state, steps done, batch) -> what the step is given.
        validate: state -> (score, metrics, what was scored); that of the highest score is kept as
            the best.
        checkpoints: where they go.
        report: who is told.
        stop: asked after each step.
        on_save: called after each checkpoint.

    Returns:
        The last state, which is saved.

    Raises:
        DivergedError: names the step, the records of the batch and the last good checkpoint.
    """
    run_steps = [CompiledByShape(parallel.map_train(step), progress.clock) for step in steps]
    done = int(parallel.one_copy(state).step)
    saved = done if checkpoints.latest_step() == done else -1
    metrics = _LateMetrics(parallel, plan, report, progress.clock)
    upcoming = _batches_from(batches, progress)
    while done < plan.total_steps and not progress.finished:
        start, compile_before = time.perf_counter(), progress.clock.compile
        batch, position = next(upcoming)
        run_step = run_steps[stage_of(progress.epoch)]
        batch = prepare(state, done, batch)
        placed = parallel.place_batch(batch)
        state, found = run_step(state, frozen, placed)
        done += 1
        progress.epoch, progress.batch = position
        progress.clock.flops += run_step.flops[run_step.shape_of(placed)]
        metrics.add(done, batch["example_ids"], found)
        compiled = progress.clock.compile - compile_before
        progress.clock.train += time.perf_counter() - start - compiled
        metrics.read(saved, keep=PENDING_STEPS)

        validate_now = done % plan.validate_every == 0 or done == plan.total_steps
        save_now = plan.checkpoint_every is not None and done % plan.checkpoint_every == 0
        if not (validate_now or save_now or stop.requested):
            continue
        metrics.read(saved)
        best = _validate(state, done, progress, plan, validate, report) if validate_now else None
        progress.finished |= done == plan.total_steps
        progress.logged = report.logged()
        _save(checkpoints, done, parallel, state, progress, best)
        saved = done
        on_save()
        if stop.requested:
            break
    return state


class _LateMetrics:
    """Metrics of steps, read when the device has long been done with them."""

    def __init__(self, parallel, plan: Plan, report: Reporter, clock: Clock):
        self._parallel, self._plan, self._report, self._clock = parallel, plan, report, clock
        self._pending: collections.deque = collections.deque()

    def add(self, step: int, example_ids: np.ndarray, metrics: dict[str, Any]) -> None:
        """Of one step, still on the device."""
        self._pending.append((step, example_ids, metrics))

    def read(self, saved: int, keep: int = 0) -> None:
        """Waits for all but the newest `keep`, which is time of training, and reports them.

        Raises:
            DivergedError: a number is none; `saved` is the step of the last checkpoint.
        """
        while len(self._pending) > keep:
            step, ids, found = self._pending.popleft()
            start = time.perf_counter()
            metrics = {f"train/{n}": float(v) for n, v in self._parallel.fetch(found).items()}
            self._clock.train += time.perf_counter() - start
            self._clock.examples += int(np.sum(ids >= 0))
            if wrong := [name for name, value in metrics.items() if not math.isfinite(value)]:
                raise DivergedError(_diverged(step, ids, wrong[0], metrics[wrong[0]], saved))
            if step % self._plan.log_every == 0 or step == self._plan.total_steps:
                self._report.log(step, metrics)
            self._report.progress(step, metrics, self._clock)


def _save(
    checkpoints: Checkpoints,
    step: int,
    parallel: Any,
    state: TrainState,
    progress: Progress,
    best: Parameters | None,
) -> None:
    start = time.perf_counter()
    if best is not None:
        checkpoints.save_best(step, parallel.one_copy(best))
    checkpoints.save(step, parallel.one_copy(state), progress.to_json())
    progress.clock.checkpoint += time.perf_counter() - start


def _validate(state, done, progress, plan, validate, report) -> Parameters | None:
    """Scores the state; what was scored, if it is the best so far."""
    start = time.perf_counter()
    score, metrics, scored = validate(state)
    progress.clock.evaluate += time.perf_counter() - start
    report.log(done, metrics)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    report.say(f"step {done}: {shown}")
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step, progress.stale_validations = score, done, 0
        return scored
    progress.stale_validations += 1
    if plan.patience is not None and progress.stale_validations >= plan.patience:
        progress.finished = True
        report.say(
            f"Stopped early: {progress.stale_validations} validations without improvement on step "
            f"{progress.best_step}."
        )
    return None


def _batches_from(batches, progress: Progress) -> Iterator[tuple[dict, tuple[int, int]]]:
    """Batches from where `progress` stands, each with the position of the one after it."""
    epoch, index = progress.epoch, progress.batch
    while True:
        makers = batches(epoch)
        while index < len(makers):
            following = (epoch, index + 1) if index + 1 < len(makers) else (epoch + 1, 0)
            yield makers[index](), following
            index += 1
        epoch, index = epoch + 1, 0


def _diverged(step: int, example_ids: np.ndarray, name: str, value: float, saved: int) -> str:
    ids = ", ".join(str(i + 1) for i in example_ids.reshape(-1) if i >= 0)
    kept = (
        f"The last good checkpoint is step {saved}" if saved >= 0 else "There is no checkpoint yet"
    )
    what = name.removeprefix("train/").replace("_", " ")
    return (
        f"The {what} is {value} at step {step}; training stopped. Its records: {ids}. {kept}. "
        "Look at those records, lower config.optimizer.learning_rate, clip to less with "
        "config.optimizer.max_gradient_norm, or compute in float32 (config.model.dtype)."
    )
