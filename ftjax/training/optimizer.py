"""AdamW with warmup, a schedule, clipping, and decay only where it belongs."""

from collections.abc import Callable
from typing import Any

import optax
from ml_collections import ConfigDict

from ftjax.tuning import Parameters

Schedule = Callable[[Any], Any]


def make_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """Linear warmup from 0, then linear or cosine to `final_fraction` of the peak, or constant.

    Args:
        config: the `optimizer` part of the config.
        total_steps: updates in the whole run.

    Returns:
        step (0 for the first update) -> learning rate. The first update after the warmup has the
        peak, the one after the last would have the final rate; so no update is wasted at rate 0.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = round(config.warmup_fraction * total_steps)
    rest = max(total_steps - warmup, 1)
    decay = {
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.final_fraction),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    rising = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([rising, decay], [warmup])


def make_optimizer(
    config: ConfigDict, schedule: Schedule, trainable: Parameters
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) on gradients clipped to a global norm.

    Args:
        config: the `optimizer` part of the config.
        schedule: step -> learning rate.
        trainable: the trainable parameters; only they get optimizer state.
    """
    factors = {
        path: 1.0 if path.startswith("backbone.") else config.head_learning_rate_factor
        for path in trainable
    }
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask(trainable)),
        optax.scale_by_learning_rate(schedule),
        optax.stateless(
            lambda updates, _: {path: u * factors[path] for path, u in updates.items()}
        ),
    )


def decay_mask(trainable: Parameters) -> dict[str, bool]:
    """True for what weight decay applies to: kernels and embeddings, not biases and norm scales."""
    return {path: path.rpartition(".")[2] not in ("bias", "scale") for path in trainable}
