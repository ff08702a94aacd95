"""Predicting one of several ordered levels, by asking of each whether it is higher.

Continuation-ratio logits, trained as in CORN (Shi et al. 2021, https://arxiv.org/abs/2111.08851):
the k-th output is asked only of texts that reach level k, and says whether they are above it. The
chances of being above a level are products of its answers and so never rise with the level.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ftjax.losses.sums import weighted_sum


def loss(
    logits: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Negative log-likelihood of the level, as a sum and the weight it is to be divided by.

    CORN's loss, but divided by the number of texts and not of questions: then it is the
    cross-entropy of the levels.

    Args:
        logits: float [batch, levels - 1].
        batch: `labels` int [batch], from 0, and `weights` float [batch], 0 for rows that only pad
            the batch.

    Returns:
        The sum of losses, the sum of weights, and the sum and weight of `accuracy`.
    """
    rows, labels = batch["weights"].astype(jnp.float32), batch["labels"]
    chances = log_probabilities(logits)
    losses = -jnp.take_along_axis(chances, labels[:, None], axis=1)[:, 0]
    right = (median_level(logits) == labels).astype(jnp.float32)
    weight = jnp.sum(rows)
    return weighted_sum(losses, rows), weight, {"accuracy": (weighted_sum(right, rows), weight)}


def log_probabilities(logits: jax.Array) -> jax.Array:
    """Of each level, float32 [batch, levels].

    Args:
        logits: float [batch, levels - 1].
    """
    logits = logits.astype(jnp.float32)
    start = jnp.zeros((len(logits), 1), jnp.float32)
    reached = jnp.cumsum(jnp.concatenate([start, jax.nn.log_sigmoid(logits)], axis=1), axis=1)
    stays = jnp.concatenate([jax.nn.log_sigmoid(-logits), start], axis=1)
    return reached + stays


def median_level(logits: jax.Array) -> jax.Array:
    """The level that a text is above or below with chances of at most 1/2, int32 [batch]."""
    above = jnp.cumsum(jax.nn.log_sigmoid(logits.astype(jnp.float32)), axis=1)
    return jnp.sum(above > jnp.log(0.5), axis=1, dtype=jnp.int32)
