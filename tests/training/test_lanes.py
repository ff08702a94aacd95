"""A lane is its own run."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import make_case

from ftjax.config import base_config
from ftjax.losses.forward import of_outputs
from ftjax.training.lanes import lane_of, make_lane_step, stack_lanes
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.step import make_train_step, new_state
from ftjax.tuning.tune import tune

LANES = [(0, 1e-2), (0, 3e-2), (7, 1e-2)]
STEPS = 4


def test_each_lane_is_its_own_run():
    config = base_config(method="lora")
    config.tuning.dropout, config.tuning.rank = 0.2, 2
    config.optimizer.learning_rate = 1.0
    unit = make_schedule(config.optimizer, STEPS)
    parts = {seed: tune(make_case("bert")[0], config.tuning, seed) for seed, _ in LANES}
    _, batch, loss = make_case("bert")
    rebuild, trainable, frozen = parts[0]

    def make_step(learning_rate):
        def schedule(step):
            return learning_rate * unit(step)

        optimizer = make_optimizer(config.optimizer, schedule, trainable)
        return make_train_step(rebuild, of_outputs(loss), optimizer, schedule)

    optimizer = make_optimizer(config.optimizer, unit, trainable)
    starts = [new_state(seed, parts[seed][1], optimizer) for seed, _ in LANES]
    rates = jnp.asarray([rate for _, rate in LANES])
    together, alone = (
        jax.jit(make_lane_step(make_step)),
        jax.jit(lambda rate, state, frozen, batch: make_step(rate)(state, frozen, batch)),
    )
    states, losses = stack_lanes(starts), []
    for _ in range(STEPS):
        states, metrics = together(rates, states, frozen, batch)
        losses.append(np.asarray(metrics["loss"]))
    for lane, (start, (_, rate)) in enumerate(zip(starts, LANES, strict=True)):
        state, own = start, []
        for _ in range(STEPS):
            state, metrics = alone(jnp.float32(rate), state, frozen, batch)
            own.append(float(metrics["loss"]))
        np.testing.assert_allclose(np.asarray(losses)[:, lane], own, atol=1e-5)
        for path, value in lane_of(states, lane).trainable.items():
            np.testing.assert_allclose(value, state.trainable[path], atol=1e-5, err_msg=path)
    assert len({round(float(x), 6) for x in losses[-1]}) == len(LANES)
