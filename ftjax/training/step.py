"""One training step, written once for every way of mapping it over devices.

Everything is kept as sums and sums of weights until the very end, so that micro-batches, devices
and padded rows are weighted exactly.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftjax.losses.forward import Forward, forward
from ftjax.penalties.penalties import NO_PENALTIES, Penalties
from ftjax.randomness import run_key
from ftjax.tuning.averaging import Averaging, no_averaging
from ftjax.tuning.noise import give_keys
from ftjax.tuning.partition import Parameters, Rebuild

Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[[Forward], tuple[jax.Array, jax.Array, Sums]]
TrainStep = Callable[["TrainState", Parameters, Batch], tuple["TrainState", dict[str, jax.Array]]]


# What a step's key is folded with, beside what penalties do (1) for a second dropout mask.
AUGMENTED = 2


class TrainState(NamedTuple):
    """All that a step changes, and so all that a checkpoint holds.

    Attributes:
        step: int32 scalar, updates done.
        seed: uint32 scalar, the run's.
        trainable: dotted path -> parameter.
        optimizer: Optax's state for `trainable`.
        average: dotted path -> the average of the parameter over steps; empty without averaging.
    """

    step: jax.Array
    seed: jax.Array
    trainable: Parameters
    optimizer: Any
    average: Parameters

    @property
    def scored(self) -> Parameters:
        """What is validated and kept: the average where there is one."""
        return self.average or self.trainable


def new_state(
    seed: int,
    trainable: Parameters,
    optimizer: optax.GradientTransformation,
    *,
    averages: bool = False,
) -> TrainState:
    """The state before the first update."""
    average = dict(trainable) if averages else {}
    return TrainState(
        jnp.zeros((), jnp.int32),
        jnp.asarray(seed, jnp.uint32),
        trainable,
        optimizer.init(trainable),
        average,
    )


def make_train_step(
    rebuild: Rebuild,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    penalties: Penalties = NO_PENALTIES,
    averaging: Averaging = no_averaging,
    moving: Collection[str] | None = None,
    accumulation_steps: int = 1,
    axis_name: str | None = None,
    rows_at_once: int | None = None,
    augment: Callable[[Batch, jax.Array], Batch] = lambda batch, key: batch,
) -> TrainStep:
    """The step `(state, frozen, batch) -> (state, metrics)`.

    Args:
        rebuild: (trainable, frozen) -> network, called as `network(batch, key=key)`.
        loss: of a pass -> (loss sum, weight sum, name -> sum and weight of a metric).
        optimizer: its state is in the TrainState.
        schedule: step -> learning rate, for the metrics.
        penalties: what is added to the loss, and to the gradients.
        averaging: how `state.average` follows `state.trainable`.
        moving: the trainable parameters that move in this stage of training; all by default. What
            rests gets no gradient, and what lies below all that moves is not differentiated.
        accumulation_steps: the batch is worked off in so many equal parts, one after the other; the
            result is that of the whole batch, whatever the parts' weights.
        axis_name: pmap's axis to sum over; None where a mesh makes sums global by itself.
        rows_at_once: rows whose activations are held; None for all. See `forward`.
        augment: (batch, key) -> the batch as this step learns from it.

    Returns:
        A function to be mapped by `ftjax.training.parallel`. Metrics are float32 scalars: `loss`
        (penalties on outputs included), those of the objective and of the penalties,
        `gradient_norm` (before clipping) and `learning_rate`.
    """

    def loss_sum(moving, resting, frozen, batch, key):
        def network(parameters, key):
            return give_keys(rebuild(parameters, frozen), key)

        parameters = penalties.perturb(moving | resting, frozen, key)
        batch = augment(batch, jax.random.fold_in(key, AUGMENTED))
        passed = forward(network, parameters, frozen, batch, key, rows_at_once)
        total, weight, metrics = loss(passed)
        held = penalties.on_outputs(passed)
        total += sum(held.values(), jnp.zeros(()))
        held = {name: (value, weight) for name, value in held.items()}
        return total, {"loss": (total, weight), **metrics, **held}

    def gradients_and_sums(*arguments):
        gradients, sums = jax.grad(loss_sum, has_aux=True)(*arguments)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), sums

    def train_step(state, frozen, batch):
        key = jax.random.fold_in(run_key(state.seed, "dropout"), state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        parts: tuple[Parameters, Parameters] = ({}, {})
        for path, value in state.trainable.items():
            parts[moving is not None and path not in moving][path] = value
        sums_of = functools.partial(gradients_and_sums, *parts, frozen)
        total = _accumulated(sums_of, batch, key, accumulation_steps)
        gradients, sums = total if axis_name is None else jax.lax.psum(total, axis_name)
        _, weight = sums["loss"]
        pulls = penalties.on_parameters(parts[0], frozen)
        gradients = {
            path: (gradient / weight + pulls.get(path, 0.0)).astype(state.trainable[path].dtype)
            for path, gradient in gradients.items()
        }
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = state.trainable | optax.apply_updates(parts[0], updates)
        metrics = {name: value / share for name, (value, share) in sums.items()}
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        average = averaging(state.average, trainable, state.step)
        return TrainState(state.step + 1, state.seed, trainable, optimizer_state, average), metrics

    return train_step


def _accumulated(sums_of: Callable, batch: Batch, key: jax.Array, steps: int) -> Any:
    """Sums over a batch, (batch, key) -> pytree, worked off in so many parts."""
    if steps == 1:
        return sums_of(batch, key)
    # Every so-many-th row, so that each part has rows of every device.
    parts = jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[1:]), batch)
    keys = jax.random.split(key, steps)

    def part(index):
        return sums_of(jax.tree.map(lambda x: x[:, index], parts), keys[index])

    # The first part outside the loop gives the sum its structure and its zero.
    return jax.lax.fori_loop(
        1, steps, lambda i, total: jax.tree.map(jnp.add, total, part(i)), part(0)
    )
