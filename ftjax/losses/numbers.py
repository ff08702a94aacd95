"""Predicting a number."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ftjax.losses.sums import weighted_sum


def loss(
    outputs: jax.Array, batch: Mapping[str, jax.Array], *, huber_delta: float | None = None
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Squared error, as a sum and the weight it is to be divided by.

    Args:
        outputs: float [batch, 1].
        batch: `labels` float [batch], the number, and `weights` float [batch], 0 for rows that only
            pad the batch.
        huber_delta: from this error on twice the absolute one, less `huber_delta`, times it (twice
            Huber's loss, so that small errors count as without it); None for all squared.

    Returns:
        The sum of losses, the sum of weights, and the sum and weight of `absolute_error`.
    """
    rows = batch["weights"].astype(jnp.float32)
    errors = outputs[:, 0].astype(jnp.float32) - batch["labels"].astype(jnp.float32)
    # Before the square: its derivative at what is no number is none, whatever it is multiplied by.
    errors = jnp.where(rows != 0, errors, 0.0)
    losses = errors**2 if huber_delta is None else 2 * optax.huber_loss(errors, delta=huber_delta)
    weight = jnp.sum(rows)
    absolute = (weighted_sum(jnp.abs(errors), rows), weight)
    return weighted_sum(losses, rows), weight, {"absolute_error": absolute}


def divergence(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of half the squared differences: KL of normal distributions of variance 1.

    Args:
        first: [batch, 1].
        second: the same.
        weights: [batch].
    """
    apart = first[:, 0].astype(jnp.float32) - second[:, 0].astype(jnp.float32)
    return weighted_sum(0.5 * apart**2, weights.astype(jnp.float32))
