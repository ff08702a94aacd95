"""One training step, written once for every way of mapping it over devices.

Everything is kept as sums and sums of weights until the very end, so that micro-batches, devices
and padded rows are weighted exactly.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftjax.randomness import run_key
from ftjax.tuning import Parameters, Rebuild

Batch = Mapping[str, jax.Array]
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
TrainStep = Callable[["TrainState", Parameters, Batch], tuple["TrainState", dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """All that a step changes, and so all that a checkpoint holds.

    Attributes:
        step: int32 scalar, updates done.
        seed: uint32 scalar, the run's.
        trainable: dotted path -> parameter.
        optimizer: Optax's state for `trainable`.
    """

    step: jax.Array
    seed: jax.Array
    trainable: Parameters
    optimizer: Any


def new_state(
    seed: int, trainable: Parameters, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first update."""
    step, seed = jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32)
    return TrainState(step, seed, trainable, optimizer.init(trainable))


def make_train_step(
    rebuild: Rebuild,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    accumulation_steps: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """The step `(state, frozen, batch) -> (state, metrics)`.

    Args:
        rebuild: (trainable, frozen) -> network, called as `network(batch, key=key)`.
        loss: (outputs, batch) -> (loss sum, weight sum, metric sums), see `ftjax.objectives`.
        optimizer: its state is in the TrainState.
        schedule: step -> learning rate, for the metrics.
        accumulation_steps: the batch is worked off in so many equal parts, one after the other; the
            result is that of the whole batch, whatever the parts' weights.
        axis_name: pmap's axis to sum over; None where a mesh makes sums global by itself.

    Returns:
        A function to be mapped by `ftjax.training.parallel`. Metrics are float32 scalars: `loss`,
        those of the objective, `gradient_norm` (before clipping) and `learning_rate`.
    """

    def loss_sum(trainable, frozen, batch, key):
        outputs = rebuild(trainable, frozen)(batch, key=key)
        total, weight, metrics = loss(outputs, batch)
        return total, {"loss": total, "weight": weight, **metrics}

    def gradients_and_sums(trainable, frozen, batch, key):
        gradients, sums = jax.grad(loss_sum, has_aux=True)(trainable, frozen, batch, key)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), sums

    def accumulated(trainable, frozen, batch, key):
        if accumulation_steps == 1:
            return gradients_and_sums(trainable, frozen, batch, key)
        # Every so-many-th row, so that each part has rows of every device.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulation_steps, *x.shape[1:]), batch)
        keys = jax.random.split(key, accumulation_steps)

        def part(index):
            micro_batch = jax.tree.map(lambda x: x[:, index], parts)
            return gradients_and_sums(trainable, frozen, micro_batch, keys[index])

        # The first part outside the loop gives the sum its structure and its zero.
        return jax.lax.fori_loop(
            1, accumulation_steps, lambda i, total: jax.tree.map(jnp.add, total, part(i)), part(0)
        )

    def train_step(state, frozen, batch):
        key = jax.random.fold_in(run_key(state.seed, "dropout"), state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        total = accumulated(state.trainable, frozen, batch, key)
        gradients, sums = total if axis_name is None else jax.lax.psum(total, axis_name)
        weight = sums.pop("weight")
        gradients = {
            path: (gradient / weight).astype(state.trainable[path].dtype)
            for path, gradient in gradients.items()
        }
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {name: value / weight for name, value in sums.items()}
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        return TrainState(state.step + 1, state.seed, trainable, optimizer_state), metrics

    return train_step
