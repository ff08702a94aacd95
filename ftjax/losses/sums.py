"""Sums in which some values do not count."""

import jax
import jax.numpy as jnp


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of values times weights over the last axis; what has weight 0 may be NaN or infinite."""
    return jnp.sum(jnp.where(weights != 0, values * weights, 0.0), axis=-1)
