"""What holds a network near its start, and what makes it agree with itself.

Penalties come in two kinds. Those on parameters (l2_sp, ewc) are gradients that are added after
those of the batch. Those on outputs (kl_to_base, r_drop, feature_distillation, replay) are sums
over the examples of the batch, weighted and divided like the loss, so that micro-batches and
devices add up exactly.

What a penalty compares with lies beside the frozen parameters, under names of its own: `start:` and
a path for the parameter's value before tuning, `fisher:` and a path for its Fisher information.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.losses.divergence import divergence
from ftjax.models.dropout import dropout, split_key

Parameters = dict[str, jax.Array]
Network = Callable[[Parameters, jax.Array | None], nnx.Module]

START, FISHER = "start:", "fisher:"


class Forward(NamedTuple):
    """One forward pass, as penalties on outputs see it.

    Attributes:
        network: (trainable parameters, key) -> network.
        parameters: the trainable ones, as they are now.
        frozen: the others, and what penalties compare with.
        tuned: the network at `parameters`.
        outputs: of `tuned` for `batch`.
        batch: arrays [rows, ...]; `weights` [rows] or [rows, length].
        key: that `outputs` was computed with; None without randomness.
        loss: the objective.
    """

    network: Network
    parameters: Parameters
    frozen: Parameters
    tuned: nnx.Module
    outputs: Any
    batch: Mapping[str, jax.Array]
    key: jax.Array | None
    loss: Callable

    def base(self) -> nnx.Module:
        """The network before tuning, without randomness or gradient.

        Only trainable parameters have a second copy: for an adapter that is the adapter at its
        start, which changes nothing, over the same frozen network.
        """
        start = {path: self.frozen[START + path] for path in self.parameters}
        return self.network(start, None)


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


def make_penalties(settings: Any) -> Penalties:
    """The penalties that a config asks for.

    Args:
        settings: the `penalties` part of the config; a strength of 0 is none.
    """
    outputs = {
        name: (getattr(settings, name), penalty)
        for name, penalty in (
            ("kl_to_base", kl_to_base),
            ("r_drop", r_drop),
            ("feature_distillation", feature_distillation),
            ("replay", replay),
        )
        if getattr(settings, name) > 0
    }
    pulls = [
        (getattr(settings, name), gradient)
        for name, gradient in (("l2_sp", l2_sp_gradient), ("ewc", ewc_gradient))
        if getattr(settings, name) > 0
    ]

    def on_outputs(forward):
        return {name: strength * penalty(forward) for name, (strength, penalty) in outputs.items()}

    def on_parameters(moving, frozen):
        total: Parameters = {}
        for strength, gradient in pulls:
            for path, pull in gradient(moving, frozen).items():
                total[path] = total.get(path, 0.0) + strength * pull
        return total

    def perturb(trainable, frozen, key):
        return mixout(trainable, frozen, key, settings.mixout)

    return Penalties(
        on_outputs,
        on_parameters,
        perturb,
        bool(pulls or settings.mixout > 0 or outputs.keys() - {"r_drop"}),
    )


def l2_sp_gradient(moving: Parameters, frozen: Parameters) -> Parameters:
    """Gradient of half the squared distance from the start (Li et al. 2018, 1802.01483, eq. 3).

    The new head has no start worth staying at; ordinary weight decay holds it, as in the paper.
    """
    return {
        path: (value - frozen[START + path]).astype(jnp.float32)
        for path, value in moving.items()
        if path.startswith("backbone.")
    }


def ewc_gradient(moving: Parameters, frozen: Parameters) -> Parameters:
    """The same, weighted by the Fisher information (Kirkpatrick et al. 2017, 1612.00796, eq. 3)."""
    return {
        path: frozen[FISHER + path] * pull for path, pull in l2_sp_gradient(moving, frozen).items()
    }


def kl_to_base(forward: Forward) -> jax.Array:
    """KL(base || tuned) of the predictions, summed over what the loss is summed over.

    The base decides where agreement counts, as in distillation (Hinton et al. 2015) and learning
    without forgetting (Li & Hoiem 2016, https://arxiv.org/abs/1606.09282).
    """
    base = forward.base()(forward.batch, key=None)
    return divergence(base, forward.outputs, forward.batch["weights"])


def r_drop(forward: Forward) -> jax.Array:
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


def replay(forward: Forward) -> jax.Array:
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
        total, _, _ = forward.loss(forward.tuned(batch, key=forward.key), batch)
        return total
    base = forward.base().features(batch)
    return feature_distance(forward.tuned.features(batch), base, batch["weights"])


def feature_distance(features: jax.Array, base: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of mean squared differences.

    Args:
        features: [..., hidden].
        base: the same.
        weights: [...].
    """
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
    paths = [path for path in trainable if path.startswith("backbone.")]
    for path, drop_key in zip(paths, split_key(key, len(paths)), strict=True):
        start = frozen[START + path]
        mixed[path] = start + dropout(trainable[path] - start, rate, drop_key)
    return mixed
