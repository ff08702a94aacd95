"""Sorting into classes by softmax cross-entropy."""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.losses.sums import weighted_sum


def loss(
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Cross-entropy, as a sum and the weight it is to be divided by.

    Sums and weights, not means: then micro-batches and devices with unequal numbers of examples add
    up to exactly the loss of the whole batch.

    Args:
        logits: float [batch, classes], or of each token [batch, length, classes].
        batch: `labels` int and `weights` float, [batch] or [batch, length]; a weight is 0 for what
            only pads the batch or bears no label.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016).
        class_weights: weight of an example by its class; 1 by default.

    Returns:
        The weighted sum of losses, the sum of weights, and the sum and weight of `accuracy`, in
        which every class counts as its examples do.
    """
    labels, rows = batch["labels"], batch["weights"].astype(jnp.float32)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    weights = example_weights(batch, class_weights)
    accuracy = (jnp.sum(weighted_sum(correct, rows)), jnp.sum(rows))
    return jnp.sum(weighted_sum(losses, weights)), jnp.sum(weights), {"accuracy": accuracy}


def example_weights(
    batch: Mapping[str, jax.Array], class_weights: tuple[float, ...] | None
) -> jax.Array:
    """What each row, or each token, counts, float32; arguments as of `loss`."""
    weights = batch["weights"].astype(jnp.float32)
    if class_weights is None:
        return weights
    return weights * jnp.asarray(class_weights, jnp.float32)[batch["labels"]]


def class_weights(labels: np.ndarray, classes: Sequence[str], how: str) -> tuple | None:
    """Weights of examples by their class.

    Args:
        labels: int [examples] of the training split.
        classes: their names.
        how: "none"; "balanced" (weight 1/frequency, as scikit-learn's) or "square_root" of that,
            both 1 on average over the examples; or "name=weight,..." with 1 for those left out.

    Raises:
        ValueError: a name that is no class, or a weight that is no number above 0.
    """
    if how == "none":
        return None
    if how not in ("balanced", "square_root"):
        return own_weights(classes, how, "class_weights")
    counts = np.bincount(labels, minlength=len(classes)).astype(np.float64)
    weights = 1.0 / np.maximum(counts, 1.0)
    if how == "square_root":
        weights = np.sqrt(weights)
    return tuple((weights * len(labels) / np.sum(weights * counts)).tolist())


def own_weights(classes: Sequence[str], how: str, field: str) -> tuple[float, ...]:
    """Weights by class from a text such as "spam=5,ham=1", 1 for those left out.

    Args:
        classes: their names.
        how: the text.
        field: of `config.objective` that it is the value of.

    Raises:
        ValueError: a name that is no class, or a weight that is no number above 0.
    """
    weights = dict.fromkeys(classes, 1.0)
    for part in how.split(","):
        name, _, number = part.rpartition("=")
        known_name = name.strip() in weights and re.fullmatch(r"\s*\d+(\.\d+)?\s*", number)
        if not known_name or not float(number) > 0:
            known = ", ".join(list(classes)[:5])
            raise ValueError(
                f"config.objective.{field} = {how!r}: {part!r} must be a class, '=', and a "
                "number above 0; or choose 'none', 'balanced' or 'square_root'. There are "
                f"{len(classes)} classes: {known}{', ...' if len(classes) > 5 else ''}."
            )
        weights[name.strip()] = float(number)
    return tuple(weights.values())
