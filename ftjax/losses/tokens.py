"""Predicting tokens: the next one, or those that are masked."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ftjax.losses.sums import weighted_sum
from ftjax.models.heads import TokenOutputs


def loss(
    outputs: TokenOutputs, batch: Mapping[str, jax.Array], *, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Cross-entropy of tokens, as a sum and the number of tokens it is over.

    Args:
        outputs: of [batch, length] places where a token is to be predicted.
        batch: `labels` int [batch, length], what the token is, and `weights` float [batch, length],
            0 where nothing is to be predicted.
        label_smoothing: share of the target spread evenly over all tokens (Szegedy et al. 2016).

    Returns:
        The sum of losses in nats, the sum of weights, and the sum and weight of `accuracy`.
    """
    sums = row_sums(outputs, batch, label_smoothing=label_smoothing)
    total, weight, right = jnp.sum(sums, axis=0)
    return total, weight, {"accuracy": (right, weight)}


def row_sums(
    outputs: TokenOutputs, batch: Mapping[str, jax.Array], *, label_smoothing: float = 0.0
) -> jax.Array:
    """Sum of losses, number of tokens, and of those rightly predicted, float32 [batch, 3]."""
    of_tokens = functools.partial(token_losses, label_smoothing=label_smoothing)
    losses, correct = outputs.map(of_tokens, batch["labels"])
    weights = batch["weights"].astype(jnp.float32)
    sums = (weighted_sum(losses, weights), jnp.sum(weights, -1), weighted_sum(correct, weights))
    return jnp.stack(sums, axis=-1)


def loss_and_entropy(
    outputs: TokenOutputs, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """As `loss`, with the metrics `mean_token_accuracy` and `entropy`, by trl's names."""
    total, weight, right, entropy = jnp.sum(row_sums_and_entropy(outputs, batch), axis=0)
    return total, weight, {"mean_token_accuracy": (right, weight), "entropy": (entropy, weight)}


def row_sums_and_entropy(outputs: TokenOutputs, batch: Mapping[str, jax.Array]) -> jax.Array:
    """`row_sums`, and the sum of the predictions' entropies in nats, float32 [batch, 4].

    Entropies have no gradient.
    """
    weights = batch["weights"].astype(jnp.float32)

    def measures(logits, labels):
        return *token_losses(logits, labels), entropies(jax.lax.stop_gradient(logits))

    losses, correct, entropy = outputs.map(measures, batch["labels"])
    sums = (losses, jnp.ones_like(losses), correct, entropy)
    return jnp.stack([weighted_sum(values, weights) for values in sums], axis=-1)


def entropies(logits: jax.Array) -> jax.Array:
    """Shannon entropy in nats of each prediction, float32 [batch, length].

    Args:
        logits: float32 [batch, length, vocabulary].
    """
    logs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def token_losses(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats and whether the likeliest token is right, float32 [batch, length].

    Args:
        logits: float32 [batch, length, vocabulary].
        labels: int [batch, length].
        label_smoothing: as of `loss`.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing > 0:
        of_all = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * of_all
    return losses, (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
