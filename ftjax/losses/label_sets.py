"""Saying yes or no to each of several labels by sigmoid cross-entropy."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.losses.classes import own_weights
from ftjax.losses.sums import weighted_sum


def loss(
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    pos_weight: tuple[float, ...] | None = None,
    focal_gamma: float = 0.0,
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Binary cross-entropy, the mean over labels, as a sum over rows and the sum of their weights.

    Args:
        logits: float [batch, labels].
        batch: `labels` int [batch, labels], 1 for those that a text has, and `weights` float
            [batch], 0 for rows that only pad the batch.
        pos_weight: of each label, what a text that has it counts, as torch's BCEWithLogitsLoss
            takes it; 1 by default.
        focal_gamma: how much less what is already clear counts: each term times (1 - p) ** gamma,
            p the probability of what is right (Lin et al. 2017, 1708.02002, eq. 4).

    Returns:
        The sum of losses, the sum of weights, and the sum and weight of `accuracy`, the share of
        labels on the right side of a probability of 1/2.
    """
    rows = batch["weights"].astype(jnp.float32)
    has, logits = batch["labels"] > 0, logits.astype(jnp.float32)
    towards = jnp.where(has, logits, -logits)
    losses = -jax.nn.log_sigmoid(towards)
    if focal_gamma > 0:
        # In logarithms: the gradient of a power at 0 is no number.
        losses = losses * jnp.exp(focal_gamma * jax.nn.log_sigmoid(-towards))
    if pos_weight is not None:
        losses = jnp.where(has, jnp.asarray(pos_weight, jnp.float32), 1.0) * losses
    right = jnp.mean((logits > 0) == has, axis=-1, dtype=jnp.float32)
    total = weighted_sum(jnp.mean(losses, axis=-1), rows)
    return total, jnp.sum(rows), {"accuracy": (weighted_sum(right, rows), jnp.sum(rows))}


def pos_weight(labels: np.ndarray, classes: Sequence[str], how: str) -> tuple[float, ...] | None:
    """What a text counts that has a label, relative to one that has not.

    Args:
        labels: int [examples, labels] of the training split.
        classes: names of the labels.
        how: "none"; "balanced" (texts without it by texts with it, so that both weigh the same) or
            "square_root" of that; or "name=weight,..." with 1 for those left out.

    Raises:
        ValueError: a name that is no label, or a weight that is no number above 0.
    """
    if how == "none":
        return None
    if how not in ("balanced", "square_root"):
        return own_weights(classes, how, "pos_weight")
    having = labels.sum(0).astype(np.float64)
    # A label that all texts have would weigh nothing.
    weights = np.maximum(len(labels) - having, 1.0) / np.maximum(having, 1.0)
    return tuple((np.sqrt(weights) if how == "square_root" else weights).tolist())


def divergence(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of KL(first || second) in nats, summed over labels, a float32 scalar.

    Args:
        first: logits [batch, labels].
        second: the same.
        weights: [batch].
    """
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    yes = jax.nn.log_sigmoid(first) - jax.nn.log_sigmoid(second)
    no = jax.nn.log_sigmoid(-first) - jax.nn.log_sigmoid(-second)
    apart = jax.nn.sigmoid(first) * yes + jax.nn.sigmoid(-first) * no
    return weighted_sum(jnp.sum(apart, axis=-1), weights.astype(jnp.float32))
