"""Optimizers with warmup, a schedule, clipping, and decay only where it belongs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ftjax.fields import Settings
from ftjax.tuning.partition import Parameters

Schedule = Callable[[Any], Any]


def make_schedule(config: Settings, total_steps: int) -> Schedule:
    """Linear warmup, then linear or cosine to `final_fraction` of the peak, or constant.

    Args:
        config: the `optimizer` part of the config.
        total_steps: updates in the whole run.

    Returns:
        step (0 for the first update) -> learning rate. The first update after the warmup has the
        peak, the one after the last would have the final rate; so no update is wasted at rate 0.
        The warmup begins at 0, that of "slanted_triangular" at the final rate (Howard & Ruder 2018,
        https://arxiv.org/abs/1801.06146, eq. 3, where cut_frac is our `warmup_fraction` and ratio
        is 1 / `final_fraction`).
    """
    fraction = config.get("final_fraction", 1.0)
    peak, final = config.learning_rate, config.learning_rate * fraction
    warmup = round(config.warmup_fraction * total_steps)
    rest = max(total_steps - warmup, 1)
    if config.schedule == "slanted_triangular":
        rising = optax.linear_schedule(final, peak, max(warmup, 1))
        return optax.join_schedules([rising, optax.linear_schedule(peak, final, rest)], [warmup])
    decay = {
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, fraction),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    rising = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([rising, decay], [warmup])


def make_optimizer(
    config: Settings,
    schedule: Schedule,
    trainable: Parameters,
    *,
    factors: Mapping[str, float] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
) -> optax.GradientTransformation:
    """Optax's AdamW (Loshchilov & Hutter 2019) or another, on gradients clipped to a global norm.

    Weight decay is decoupled for all of them: added to the direction, and scaled by the rate.

    Args:
        config: the `optimizer` part of the config.
        schedule: step -> learning rate.
        trainable: the trainable parameters; only they get optimizer state.
        factors: path -> what its learning rate is multiplied by, 1 for those left out.
        groups: paths that begin to move together. An update moves the groups that gradients are
            given for; each has moments and a count of its own, so that a group that begins late is
            corrected for its own bias (as in torch, which counts per parameter). One group of all
            by default.
    """
    factors = factors or {}
    groups = [list(group) for group in groups or [trainable]]
    clip = optax.identity()
    if config.max_gradient_norm is not None:
        clip = optax.clip_by_global_norm(config.max_gradient_norm)
    direction = optax.chain(
        _direction(config), optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    )

    def init(params: Any) -> Any:
        states = tuple(direction.init(_take(params, group)) for group in groups)
        return jnp.zeros((), jnp.int32), states

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        step, states = state
        clipped: Any = clip.update(updates, clip.init(updates))[0]
        updates, states = {}, list(states)
        for index, group in enumerate(groups):
            if group[0] not in clipped:
                continue
            moved: Any
            moved, states[index] = direction.update(
                _take(clipped, group), states[index], _take(params, group)
            )
            updates |= moved
        rate = schedule(step)
        updates = {
            path: jnp.asarray(-rate * factors.get(path, 1.0), update.dtype) * update
            for path, update in updates.items()
        }
        return updates, (step + 1, tuple(states))

    return optax.GradientTransformation(init, update)


def decay_mask(trainable: Parameters) -> dict[str, bool]:
    """True for what weight decay applies to: kernels and embeddings, not biases and norm scales."""
    return {path: not path.endswith(("bias", ".scale")) for path in trainable}


def _direction(config: Settings) -> optax.GradientTransformation:
    """What gradients become, before rate and decay."""
    return {
        "adamw": lambda: optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        "adafactor": lambda: optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
        ),
        "lion": lambda: optax.scale_by_lion(config.beta1, config.beta2),
        "muon": lambda: _muon(config.momentum),
        "sgd": lambda: optax.trace(config.momentum),
    }[config.name]()


def _muon(momentum: float) -> optax.GradientTransformation:
    """Matrices orthogonalised (Jordan et al. 2024), everything else by Adam.

    Their size is that of Adam's updates (Liu et al. 2025, https://arxiv.org/abs/2502.16982, eq. 4),
    so that one learning rate is right for both.
    """

    def kinds(parameters):
        return {
            path: "muon" if value.ndim == 2 and not path.endswith(".embedding") else "adam"
            for path, value in parameters.items()
        }

    def two_dimensions(updates):
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates)

    def as_large_as_adams(updates, _):
        return jax.tree.map(lambda update: 0.2 * max(update.shape) ** 0.5 * update, updates)

    matrices = optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=two_dimensions),
        optax.stateless(as_large_as_adams),
    )
    return optax.partition({"muon": matrices, "adam": optax.scale_by_adam()}, kinds)


def _take(parameters: Parameters, paths: Sequence[str]) -> Parameters:
    return {path: parameters[path] for path in paths}
