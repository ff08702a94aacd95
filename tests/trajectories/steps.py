"""Fifty steps of an objective on a tiny network: loss and gradient norm before each."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matrix import ROWS

from ftjax.config import Config, flatten
from ftjax.data.examples import plan
from ftjax.losses.forward import START
from ftjax.training.build import Parts, build
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.step import make_train_step, new_state

STEPS = 50
FIELDS = {"optimizer.learning_rate": 1e-2, "optimizer.warmup_fraction": 0.0}
# T5 does not scale its scores, and cosines of pairs with drawn labels go to and fro: at that rate,
# rounding grows to differences of 1e-3 in fifty steps. What GRPO draws does not follow the network
# here, so that nothing keeps its loss from falling, and images of noise are learned by heart.
SLOWER = {"optimizer.learning_rate": 3e-3}
OWN_FIELDS = dict.fromkeys(("seq2seq", "setfit", "grpo", "image_classification"), SLOWER)
# Set where they are read: a head that transformers has, too, and all rows of a table.
WHERE_READ = {"model.head": "published", "tuning.embedding_rows": "all"}
PLACES = ("model.reference", "data.source", "data.catalogue", "objective.reward_funcs")


class Track(NamedTuple):
    """A run of fifty steps.

    Attributes:
        config: the run's.
        parts: as a run has them.
        start: the parameters that it starts from, the same on every machine.
        batches: what each step saw.
        steps: float64 [steps, 2], loss and gradient norm.
    """

    config: Config
    parts: Parts
    start: dict
    batches: list[dict[str, np.ndarray]]
    steps: np.ndarray


def track_of(objective: str, config_for) -> Track:
    """Of an objective on the first of its families, with AdamW as a run has it."""
    family = ROWS[objective].families[0]
    fields = FIELDS | OWN_FIELDS.get(objective, {})
    config = config_for(objective, family, times=3, choices=WHERE_READ, **fields)
    parts = build(config)
    start = {path: _drawn(path, value) for path, value in parts.trainable.items()}
    schedule = make_schedule(config.optimizer, STEPS)
    optimizer = make_optimizer(config.optimizer, schedule, start)
    step = make_train_step(parts.rebuild, parts.objective.loss, optimizer, schedule)
    step, state = jax.jit(step), new_state(0, start, optimizer)
    batches = [batch for _, batch in zip(range(STEPS), _batches(config, parts), strict=False)]
    found = []
    # What is compared with, for objectives that do.
    frozen = parts.frozen | {START + path: value for path, value in start.items()}
    for batch in batches:
        state, metrics = step(state, frozen, batch)
        found.append((metrics["loss"], metrics["gradient_norm"]))
    return Track(config, parts, start, batches, np.asarray(found, np.float64))


def settings_of(track: Track) -> dict:
    """The config without what differs between machines."""
    return {name: value for name, value in flatten(track.config).items() if name not in PLACES}


def _drawn(path: str, like: jax.Array) -> jax.Array:
    """By numpy, whose random numbers stay the same from version to version."""
    generator = np.random.default_rng(zlib.crc32(path.encode()))
    values = 0.2 * generator.normal(size=like.shape) + path.endswith(".scale")
    return jnp.asarray(values, like.dtype)


def _batches(config: Config, parts: Parts) -> Iterator[dict[str, np.ndarray]]:
    size, epoch = config.data.batch_size, 0
    while True:
        examples = parts.objective.epoch_examples(epoch)
        for planned in plan(examples, size, seed=config.seed, epoch=epoch):
            batch = examples.batch(planned.indices, rows=size, length=planned.length)
            yield ROWS[config.objective.name].learned(parts.objective, batch)
        epoch += 1
