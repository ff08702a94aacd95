"""How far the predictions of two networks are apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftjax.models.heads import TokenOutputs

# Logits, or a TokenOutputs.
Outputs = Any
Divergence = Callable[[Outputs, Outputs, jax.Array], jax.Array]


def divergence(first: Outputs, second: Outputs, weights: jax.Array) -> jax.Array:
    """Weighted sum of KL(first || second) in nats, a float32 scalar.

    Args:
        first: logits [batch, classes], or a language model's outputs.
        second: the same.
        weights: [batch], or of a language model [batch, length].
    """
    if isinstance(first, TokenOutputs):
        divergences = first.map(
            lambda logits, hidden: _kl(logits, second.project(hidden)), second.hidden
        )
    else:
        divergences = _kl(first, second)
    return jnp.sum(divergences * weights.astype(jnp.float32))


def _kl(first: jax.Array, second: jax.Array) -> jax.Array:
    log_first = jax.nn.log_softmax(first.astype(jnp.float32))
    log_second = jax.nn.log_softmax(second.astype(jnp.float32))
    return optax.losses.kl_divergence_with_log_targets(log_second, log_first)
