"""Sorting into classes by softmax cross-entropy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax


def loss(
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Cross-entropy, as a sum and the weight it is to be divided by.

    Sums and weights, not means: then micro-batches and devices with unequal numbers of examples add
    up to exactly the loss of the whole batch.

    Args:
        logits: float [batch, classes].
        batch: `labels` int [batch] and `weights` float [batch], 0 for rows that only pad the batch.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016).
        class_weights: weight of an example by its class; 1 by default.

    Returns:
        The weighted sum of losses, the sum of weights, and sums of further metrics to be divided by
        the sum of weights: `accuracy`.
    """
    labels, weights = batch["labels"], batch["weights"].astype(jnp.float32)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    if class_weights is not None:
        weights = weights * jnp.asarray(class_weights, jnp.float32)[labels]
    return jnp.sum(losses * weights), jnp.sum(weights), {"accuracy": jnp.sum(correct * weights)}


def balancing_weights(labels: np.ndarray, num_classes: int, how: str) -> tuple[float, ...] | None:
    """Class weights that make up for unequal frequencies, 1 on average over the examples.

    Args:
        labels: int [examples] of the training split.
        num_classes: number of classes.
        how: "none", "balanced" (weight 1/frequency, as scikit-learn's) or "square_root" of that.
    """
    if how == "none":
        return None
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    weights = 1.0 / np.maximum(counts, 1.0)
    if how == "square_root":
        weights = np.sqrt(weights)
    return tuple((weights * len(labels) / np.sum(weights * counts)).tolist())
