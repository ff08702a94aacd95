"""What holds a network near its start, and what makes it agree with itself.

Penalties come in two kinds. Those on parameters (l2_sp, ewc) are gradients that are added after
those of the batch. Those on outputs (kl_to_base, r_drop, feature_distillation, replay) are sums
over the examples of the batch, weighted and divided like the loss, so that micro-batches and
devices add up exactly.

What a penalty compares with lies beside the frozen parameters, under names of its own: `start:` and
a path for the parameter's value before tuning (see `losses.forward`), `fisher:` and a path for its
Fisher information.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.fields import Field, Fields
from ftjax.losses.divergence import Divergence, divergence
from ftjax.losses.forward import START, Forward, Parameters
from ftjax.models.dropout import dropout, split_key
from ftjax.models.heads import is_new

FISHER = "fisher:"

GENERAL_TEXT: Fields = {
    "penalties.source": Field("", "General text, as data.source.", required=True),
    "penalties.split": Field("train", "Split of the general text."),
    "penalties.text_field": Field("text", "Column with the general text."),
    "penalties.limit": Field(2048, "Use so many general texts, drawn at random.", minimum=1),
}
FIELDS: Fields = {
    "penalties.l2_sp": Field(0.0, "Strength of the pull back to the start.", minimum=0.0),
    "penalties.ewc": Field(
        0.0,
        "The same, weighted by Fisher information (of mean 1) on general text.",
        minimum=0.0,
        if_set=GENERAL_TEXT,
    ),
    "penalties.kl_to_base": Field(
        0.0, "Strength of KL(base || tuned) of predictions.", minimum=0.0
    ),
    "penalties.r_drop": Field(0.0, "Strength of agreement between two dropout masks.", minimum=0.0),
    "penalties.feature_distillation": Field(
        0.0, "Strength of staying close to the base's features.", minimum=0.0
    ),
    "penalties.replay": Field(
        0.0,
        "Weight of general text in each batch: its own loss, or without labels its features.",
        minimum=0.0,
        if_set={
            **GENERAL_TEXT,
            "penalties.replay_share": Field(
                0.25, "Rows of general text per row of the task.", above=0.0, maximum=4.0
            ),
        },
    ),
    "penalties.mixout": Field(
        0.0, "Share of parameters put back to the start in each step.", minimum=0.0, below=1.0
    ),
}


class Penalties(NamedTuple):
    """All penalties of a run.

    Attributes:
        on_outputs: Forward -> name -> weighted sum over the batch, strength included.
        on_parameters: (moving parameters, frozen) -> path -> gradient to add.
        perturb: (trainable, frozen, key) -> what the forward pass uses in their place.
        needs_start: whether `start:` values must lie beside the frozen parameters.
    """

    on_outputs: Callable[[Forward], dict[str, jax.Array]]
    on_parameters: Callable[[Parameters, Parameters], Parameters]
    perturb: Callable[[Parameters, Parameters, jax.Array | None], Parameters]
    needs_start: bool


NO_PENALTIES = Penalties(lambda _: {}, lambda *_: {}, lambda trainable, *_: trainable, False)


def make_penalties(settings: Any, loss: Callable, divergence: Divergence = divergence) -> Penalties:
    """The penalties that a config asks for.

    Args:
        settings: the `penalties` part of the config; a strength of 0, or none, is no penalty.
        loss: the objective's, of general text.
        divergence: the objective's, of two networks' outputs.
    """

    def agreement_with_base(forward):
        return kl_to_base(forward, divergence)

    def agreement_of_masks(forward):
        return r_drop(forward, divergence)

    def replay_loss(forward):
        return replay(forward, loss)

    def strength(name):
        return settings.get(name, 0.0)

    outputs = {
        name: (strength(name), penalty)
        for name, penalty in (
            ("kl_to_base", agreement_with_base),
            ("r_drop", agreement_of_masks),
            ("feature_distillation", feature_distillation),
            ("replay", replay_loss),
        )
        if strength(name) > 0
    }
    pulls = [
        (strength(name), gradient)
        for name, gradient in (("l2_sp", l2_sp_gradient), ("ewc", ewc_gradient))
        if strength(name) > 0
    ]
    rate = strength("mixout")

    def on_outputs(forward):
        return {name: weight * penalty(forward) for name, (weight, penalty) in outputs.items()}

    def on_parameters(moving, frozen):
        total: Parameters = {}
        for weight, gradient in pulls:
            for path, pull in gradient(moving, frozen).items():
                total[path] = total.get(path, 0.0) + weight * pull
        return total

    def perturb(trainable, frozen, key):
        return mixout(trainable, frozen, key, rate)

    return Penalties(
        on_outputs,
        on_parameters,
        perturb,
        bool(pulls or rate > 0 or outputs.keys() - {"r_drop"}),
    )


def l2_sp_gradient(moving: Parameters, frozen: Parameters) -> Parameters:
    """Gradient of half the squared distance from the start (Li et al. 2018, 1802.01483, eq. 3).

    The new head has no start worth staying at; ordinary weight decay holds it, as in the paper.
    """
    return {
        path: (value - frozen[START + path]).astype(jnp.float32)
        for path, value in moving.items()
        if not is_new(path)
    }


def ewc_gradient(moving: Parameters, frozen: Parameters) -> Parameters:
    """The same, weighted by the Fisher information (Kirkpatrick et al. 2017, 1612.00796, eq. 3)."""
    return {
        path: frozen[FISHER + path] * pull for path, pull in l2_sp_gradient(moving, frozen).items()
    }


def kl_to_base(forward: Forward, divergence: Divergence = divergence) -> jax.Array:
    """KL(base || tuned) of the predictions, summed over what the loss is summed over.

    The base decides where agreement counts, as in distillation (Hinton et al. 2015) and learning
    without forgetting (Li & Hoiem 2016, https://arxiv.org/abs/1606.09282).
    """
    base = forward.base()(forward.batch, key=None)
    return divergence(base, forward.outputs, forward.batch["weights"])


def r_drop(forward: Forward, divergence: Divergence = divergence) -> jax.Array:
    """Two dropout masks, one answer (Liang et al. 2021, https://arxiv.org/abs/2106.14448, eq. 4).

    Half the symmetric KL between the outputs of two passes. The second pass's own loss is not
    added: in expectation it is the first's.
    """
    if forward.key is None:
        return jnp.zeros(())
    key = jax.random.fold_in(forward.key, 1)
    second = forward.network(forward.parameters, key)(forward.batch, key=key)
    weights = forward.batch["weights"]
    there = divergence(forward.outputs, second, weights)
    return 0.5 * (there + divergence(second, forward.outputs, weights))


def feature_distillation(forward: Forward) -> jax.Array:
    """Squared distance of the features from the base's, the mean over feature dimensions."""
    base = forward.base().features(forward.batch)
    return feature_distance(forward.tuned.features(forward.batch), base, forward.batch["weights"])


def replay(forward: Forward, loss: Callable) -> jax.Array:
    """General text that rides along in the batch, under names that begin with `replay_`.

    A language model keeps reading it: its own loss. Where there is nothing to predict, the features
    stay close to the base's. The rows' weights sum to what the batch's own do.
    """
    batch = {
        name.removeprefix("replay_"): value
        for name, value in forward.batch.items()
        if name.startswith("replay_")
    }
    if "labels" in batch:
        total, _, _ = loss(forward.with_batch(batch))
        return total
    base = forward.base().features(batch)
    return feature_distance(forward.tuned.features(batch), base, batch["weights"])


def feature_distance(features: jax.Array, base: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of mean squared differences.

    Args:
        features: [..., hidden].
        base: the same.
        weights: [...], or for a feature of a whole text those of its tokens, [..., length].
    """
    if weights.ndim == features.ndim:
        weights = jnp.sum(weights, axis=-1)
    difference = features.astype(jnp.float32) - base.astype(jnp.float32)
    return jnp.sum(jnp.mean(difference**2, axis=-1) * weights.astype(jnp.float32))


def mixout(
    trainable: Parameters, frozen: Parameters, key: jax.Array | None, rate: float
) -> Parameters:
    """Each element goes back to its start with probability `rate` for this pass.

    The rest moves away from the start by 1 / (1 - rate), so that the mean is the parameter itself
    (Lee et al. 2020, https://arxiv.org/abs/1909.11299, eq. 7). The new head is left alone.
    """
    if rate == 0.0 or key is None:
        return trainable
    mixed = dict(trainable)
    paths = [path for path in trainable if not is_new(path)]
    for path, drop_key in zip(paths, split_key(key, len(paths)), strict=True):
        start = frozen[START + path]
        mixed[path] = start + dropout(trainable[path] - start, rate, drop_key)
    return mixed
