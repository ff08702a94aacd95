"""Predicting the next token."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ftjax.models.heads import TokenOutputs


def loss(
    outputs: TokenOutputs, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Cross-entropy of the next token, as a sum and the number of tokens it is over.

    Args:
        outputs: of [batch, length] tokens.
        batch: `labels` int [batch, length], the token that follows each position, and `weights`
            float [batch, length], 0 where nothing is to be predicted.

    Returns:
        The sum of losses in nats, the sum of weights, and the sum and weight of `accuracy`.
    """
    losses, correct = outputs.map(token_losses, batch["labels"])
    weights = batch["weights"].astype(jnp.float32)
    total = jnp.sum(weights)
    return jnp.sum(losses * weights), total, {"accuracy": (jnp.sum(correct * weights), total)}


def row_sums(outputs: TokenOutputs, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Sum of losses and number of tokens of each row, float32 [batch, 2]; for evaluation."""
    losses, _ = outputs.map(token_losses, batch["labels"])
    weights = batch["weights"].astype(jnp.float32)
    return jnp.stack([jnp.sum(losses * weights, axis=-1), jnp.sum(weights, axis=-1)], axis=-1)


def token_losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats and whether the likeliest token is right, float32 [batch, length].

    Args:
        logits: float32 [batch, length, vocabulary].
        labels: int [batch, length].
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
