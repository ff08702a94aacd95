"""Several runs of one adapter in one step: lanes over a base that they share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ftjax.training.step import Batch, TrainState, TrainStep
from ftjax.tuning.partition import Parameters

LaneStep = Callable[[jax.Array, TrainState, Parameters, Batch], tuple[TrainState, dict]]


def make_lane_step(make_step: Callable[[jax.Array], TrainStep]) -> LaneStep:
    """The step `(learning_rates, states, frozen, batch) -> (states, metrics)`.

    Each lane is what its own run would be: it has a seed (in its state), a learning rate and
    parameters of its own. The frozen parameters and the batch are the same for all, and are held
    once.

    Args:
        make_step: learning rate (a traced scalar) -> a step from `make_train_step`, whose schedule
            and optimizer use that rate.

    Returns:
        A function of `learning_rates` [lanes], states stacked by `stack_lanes`, frozen parameters
        and a batch; metrics are [lanes].
    """

    def step(learning_rates, states, frozen, batch):
        def lane(learning_rate, state):
            return make_step(learning_rate)(state, frozen, batch)

        return jax.vmap(lane)(learning_rates, states)

    return step


def stack_lanes(states: Sequence[TrainState]) -> TrainState:
    """States of equal structure as one, each array with a leading axis [lanes]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def lane_of(states: TrainState, lane: int) -> TrainState:
    """One of the states that `stack_lanes` put together."""
    return jax.tree.map(lambda leaf: leaf[lane], states)
