"""Parts, trained: schedule, stages, optimizer, checkpoints and loop put together."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from rich.console import Console

from ftjax.config import Config
from ftjax.data.batching import BatchPlan
from ftjax.data.examples import plan
from ftjax.interrupt import Stopped, stop_on_signals
from ftjax.penalties.general_text import Replay
from ftjax.penalties.penalties import make_penalties
from ftjax.runs.folder import RunFolder
from ftjax.training.build import Parts
from ftjax.training.checkpoint import Checkpoints, host_copy
from ftjax.training.loop import Progress, train
from ftjax.training.measure import Measure
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.plan import make_plan
from ftjax.training.report import RunReport
from ftjax.training.rollouts import make_rollouts
from ftjax.training.step import TrainState, TrainStep, make_train_step, new_state
from ftjax.training.tensorboard import event_writer
from ftjax.tuning.averaging import make_averaging
from ftjax.tuning.learning_rates import learning_rate_factors
from ftjax.tuning.partition import Parameters
from ftjax.tuning.stages import Stage, make_stages, stage_of


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What training found.

    Attributes:
        best: the parameters of the best validation, on the host.
        progress: where training stood at its end.
        steps: updates done.
    """

    best: Parameters
    progress: Progress
    steps: int


def fit(
    config: Config,
    folder: RunFolder,
    parts: Parts,
    measure: Measure,
    console: Console,
    on_save: Callable[[], object] = lambda: None,
) -> Fitted:
    """Trains, or goes on from the last checkpoint of the folder.

    Args:
        config: validated.
        folder: for checkpoints and metrics.
        parts: from `build`, with anchors.
        measure: of the same network, for validation.
        console: for a person.
        on_save: called after each checkpoint.

    Raises:
        Stopped: it was told to stop, and saved.
        DivergedError: a number is none.
    """
    planned = make_plan(config, parts.objective.epoch_examples(0), parts.objective.updates)
    state, steps, stages = _begin(config, parts, planned.total_steps)
    say = functools.partial(console.print, highlight=False)
    settings = {"keep_last": config.training.keep_checkpoints, "warn": say}
    with Checkpoints(folder.checkpoints, **settings) as checkpoints:
        checkpoints.require_room(state, state.scored)
        state, progress = _restored(checkpoints, state, say)
        if not folder.forget_after(int(state.step), progress.logged):
            say(
                f"metrics.jsonl in {folder.path} was damaged or edited; what it held is in "
                "metrics.damaged.jsonl. The result does not depend on it."
            )
        events = event_writer(folder.path, config.training.tensorboard, int(state.step))
        with (
            stop_on_signals() as stop,
            events as writer,
            RunReport(folder, planned.total_steps, console, writer) as report,
        ):
            state = train(
                # A copy: the step reuses its memory, and the start values are needed again.
                parts.parallel.place(host_copy(state)),
                parts.frozen,
                progress,
                plan=planned,
                steps=steps,
                stage_of=functools.partial(stage_of, stages),
                parallel=parts.parallel,
                batches=functools.partial(_epoch_batches, config, parts),
                prepare=make_rollouts(config.seed, parts, progress),
                validate=functools.partial(_validate, config, parts, measure, report.say),
                checkpoints=checkpoints,
                report=report,
                stop=stop,
                on_save=on_save,
            )
        done = int(parts.parallel.one_copy(state).step)
        checkpoints.wait()
        if stop.requested is not None:
            raise Stopped(
                f"Stopped by {stop.requested.name} at step {done} of {planned.total_steps}; all is "
                "saved. The same command continues from there.",
                stop.requested,
            )
        best = checkpoints.restore_best(parts.trainable, progress.best_step)
        return Fitted(best, progress, done)


def _begin(
    config: Config, parts: Parts, total_steps: int
) -> tuple[TrainState, list[TrainStep], list[Stage]]:
    """The state before the first step, and a step for each stage of training."""
    schedule = make_schedule(config.optimizer, total_steps)
    stages = make_stages(parts.trainable, config.tuning)
    optimizer = make_optimizer(
        config.optimizer,
        schedule,
        parts.trainable,
        factors=learning_rate_factors(config.optimizer, config.tuning, list(parts.trainable)),
        groups=[stage.joining for stage in stages],
    )
    objective = parts.objective
    steps = [
        make_train_step(
            parts.rebuild,
            objective.loss,
            optimizer,
            schedule,
            penalties=make_penalties(
                config.penalties, objective.general_loss, objective.divergence
            ),
            averaging=make_averaging(config.averaging, total_steps),
            moving=stage.moving,
            accumulation_steps=config.optimizer.accumulation_steps,
            axis_name=parts.parallel.axis_name,
            rows_at_once=objective.rows_at_once,
            augment=objective.augmented,
        )
        for stage in stages
    ]
    averages = config.averaging.method != "none"
    return new_state(config.seed, parts.trainable, optimizer, averages=averages), steps, stages


def _restored(checkpoints: Checkpoints, state: TrainState, say) -> tuple[TrainState, Progress]:
    saved = checkpoints.restore(state)
    if saved is None:
        return state, Progress()
    step, state, values = saved
    progress = Progress.from_json(values)
    if progress.best_step >= 0:
        checkpoints.require_best(progress.best_step, step)
    say(f"Continuing from step {step}.")
    return state, progress


def _epoch_batches(config: Config, parts: Parts, epoch: int) -> list[Callable]:
    size, examples = config.data.batch_size, parts.objective.epoch_examples(epoch)
    replay = None
    if config.penalties.get("replay", 0.0) > 0:
        multiple = parts.parallel.batch_multiple * config.optimizer.accumulation_steps
        share = config.penalties.replay_share
        assert parts.general is not None
        replay = Replay(parts.general, share, config.seed, multiple)

    def make(index: int, planned: BatchPlan) -> dict[str, np.ndarray]:
        batch = examples.batch(planned.indices, rows=size, length=planned.length)
        return batch if replay is None else replay.add(batch, epoch, index)

    plans = plan(examples, size, seed=config.seed, epoch=epoch)
    plans = [planned for planned in plans for _ in range(parts.objective.updates)]
    return [functools.partial(make, index, planned) for index, planned in enumerate(plans)]


def _validate(
    config: Config, parts: Parts, measure: Measure, say: Callable[[str], None], state: TrainState
) -> tuple[float, dict[str, float], Parameters]:
    scored = measure.solved(parts.objective.solved(), state.scored)
    metrics = measure(parts.objective.validation(), scored, ["validation"])
    if (alarm := parts.objective.alarm(metrics)) is not None:
        say(alarm)
    score = metrics[f"validation/{config.evaluation.metric}"]
    higher = parts.objective.metrics[config.evaluation.metric] == "higher"
    return (score if higher else -score), metrics, scored
