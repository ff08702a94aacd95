"""Averages of the parameters over training, and between its start and its end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Parameters = dict[str, jax.Array]
Averaging = Callable[[Parameters, Parameters, jax.Array], Parameters]


def no_averaging(average: Parameters, trainable: Parameters, step: jax.Array) -> Parameters:
    """Nothing is kept."""
    return average


def make_averaging(settings: Any, total_steps: int) -> Averaging:
    """How the average follows the parameters: (average, trainable, step) -> average.

    "ema": average <- decay * average + (1 - decay) * trainable, from the start values on (Polyak &
    Juditsky 1992). "swa": the mean over all steps from `start_fraction` of the run on (Izmailov et
    al. 2018, https://arxiv.org/abs/1803.05407, there once per epoch, here every step); before, the
    parameters themselves.

    Args:
        settings: the `averaging` part of the config.
        total_steps: updates in the whole run.
    """
    if settings.method == "none":
        return no_averaging
    first = int(settings.start_fraction * total_steps)

    def share_of_new(step):
        if settings.method == "ema":
            return jnp.float32(1.0 - settings.decay)
        return 1.0 / jnp.maximum(step - first + 1, 1).astype(jnp.float32)

    def follow(average, trainable, step):
        share = share_of_new(step)
        return {
            path: (value + share * (trainable[path].astype(jnp.float32) - value)).astype(
                value.dtype
            )
            for path, value in average.items()
        }

    return follow


def interpolate(start: Parameters, end: Parameters, alpha: float) -> Parameters:
    """(1 - alpha) * start + alpha * end: WiSE-FT (Wortsman et al. 2022, 2109.01903, eq. 1).

    Parameters of the task's own head have no meaningful start and are taken from the end.

    Args:
        start: pretrained values.
        end: tuned values, same paths.
        alpha: 0 for the pretrained network, 1 for the tuned one.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha = {alpha} is outside [0, 1]: 0 is the start, 1 the tuned network.")
    return {
        path: (
            (1.0 - alpha) * start[path].astype(jnp.float32) + alpha * value.astype(jnp.float32)
        ).astype(value.dtype)
        if path.startswith("backbone.")
        else value
        for path, value in end.items()
    }
