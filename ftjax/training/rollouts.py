"""What a network does before it is updated: rollouts, which steps then learn from."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ftjax.data.examples import Batch
from ftjax.objectives.rollout import Rollout
from ftjax.randomness import run_key
from ftjax.training.build import Parts
from ftjax.training.loop import Progress
from ftjax.training.step import TrainState

# Of a row, what its random key is made of: the step before which it is drawn, and its number.
DRAW = "draw"
Prepare = Callable[[TrainState, int, Batch], Batch]


def make_rollouts(seed: int, parts: Parts, progress: Progress) -> Prepare:
    """What makes the batch of a step of what the plan says.

    Args:
        seed: the run's.
        parts: of the run.
        progress: keeps what several steps learn from, so that a run that is stopped between them
            goes on with the same.

    Returns:
        (state, steps done, batch) -> the batch that the step is given.
    """
    rollout = parts.objective.rollout()
    if rollout is None:
        return lambda state, done, batch: batch
    return _Rollouts(rollout, seed, parts, progress)


class _Rollouts:
    def __init__(self, rollout: Rollout, seed: int, parts: Parts, progress: Progress):
        self._rollout, self._parts, self._progress = rollout, parts, progress
        place = parts.parallel

        def outputs(trainable, frozen, batch):
            key = run_key(seed, "rollout")
            keys = jax.vmap(
                lambda draw: jax.random.fold_in(jax.random.fold_in(key, draw[0]), draw[1])
            )
            return rollout.outputs(parts.rebuild(trainable, frozen), batch, keys(batch[DRAW]))

        self._outputs = place.map_evaluate(outputs)
        self._score = None
        if (score := rollout.score) is not None:
            self._score = place.map_evaluate(
                lambda trainable, frozen, batch: score(parts.rebuild(trainable, frozen), batch)
            )

    def __call__(self, state: TrainState, done: int, batch: Batch) -> Batch:
        """The batch of the next step, made anew where the last one has had all its updates."""
        updates = self._rollout.updates
        if done % updates > 0:
            assert self._progress.rollout is not None
            return _from_json(self._progress.rollout)
        batch = self._made(state, done, batch)
        if updates > 1:
            self._progress.rollout = _as_json(batch)
        return batch

    def _made(self, state: TrainState, done: int, batch: Batch) -> Batch:
        batch = {name: np.repeat(a, self._rollout.copies, axis=0) for name, a in batch.items()}
        rows = len(batch["example_ids"])
        draw = np.stack([np.full(rows, done), np.arange(rows)], axis=1).astype(np.int32)
        found = self._rollout.batch(
            batch, self._on_devices(self._outputs, state, batch | {DRAW: draw})
        )
        if self._score is not None:
            found |= self._on_devices(self._score, state, found)
        return found

    def _on_devices(self, function: Callable, state: TrainState, batch: Batch) -> Any:
        place = self._parts.parallel
        found = function(state.trainable, self._parts.frozen, place.place_batch(batch))
        return jax.tree.map(np.asarray, place.fetch(found))


def _as_json(batch: Batch) -> dict[str, Any]:
    """Numbers of float32 are the same when read again."""
    return {name: [str(a.dtype), a.tolist()] for name, a in batch.items()}


def _from_json(values: dict[str, Any]) -> Batch:
    return {name: np.asarray(numbers, dtype) for name, (dtype, numbers) in values.items()}
