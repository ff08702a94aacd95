"""Averages of the parameters over training, and between its start and its end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.fields import Field, Fields
from ftjax.models.heads import is_new
from ftjax.models.layers import Network

Parameters = dict[str, jax.Array]
Averaging = Callable[[Parameters, Parameters, jax.Array], Parameters]

FIELDS: Fields = {
    "averaging.method": Field(
        "none",
        "Score and keep an average over steps instead of the last parameters.",
        options={
            "none": {},
            "ema": {"averaging.decay": Field(0.999, "Of ema.", above=0.0, below=1.0)},
            "swa": {
                "averaging.start_fraction": Field(
                    0.5, "Share of the run after which swa begins.", minimum=0.0, below=1.0
                )
            },
        },
    ),
    "averaging.wise_ft_alphas": Field(
        (),
        "After training, also score (1 - alpha) x start + alpha x tuned for these alphas.",
        minimum=0.0,
        maximum=1.0,
        items=float,
    ),
}


def no_averaging(average: Parameters, trainable: Parameters, step: jax.Array) -> Parameters:
    """Nothing is kept."""
    return average


def make_averaging(settings: Any, total_steps: int) -> Averaging:
    """How the average follows the parameters: (average, trainable, step) -> average.

    "ema": average <- decay * average + (1 - decay) * trainable (Polyak & Juditsky 1992), corrected
    for its beginning as Adam's moments are (Kingma & Ba 2015, section 3): divided by the weight of
    what it has seen, so that no start value is left in it after a short run. "swa": the mean over
    all steps from `start_fraction` of the run on (Izmailov et al. 2018,
    https://arxiv.org/abs/1803.05407, there once per epoch, here every step); before, the
    parameters themselves.

    Args:
        settings: the `averaging` part of the config.
        total_steps: updates in the whole run.
    """
    if settings.method == "none":
        return no_averaging
    first = int(settings.get("start_fraction", 0.0) * total_steps)

    def share_of_new(step):
        if settings.method == "ema":
            seen = (step + 1).astype(jnp.float32)
            return (1.0 - settings.decay) / (1.0 - settings.decay**seen)
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


def between(start: Network, end: Network, alpha: float) -> nnx.Module:
    """(1 - alpha) * start + alpha * end: WiSE-FT (Wortsman et al. 2022, 2109.01903, eq. 1).

    Adapters are interpolated as the weights that they mean, so both networks are merged: between
    two pairs of factors lies another product than between the two products. Parameters of the
    task's own head have no meaningful start and are taken from the end.

    Args:
        start: the pretrained network, merged.
        end: the tuned one, merged; changed in place, and returned.
        alpha: 0 for the pretrained network, 1 for the tuned one.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha = {alpha} is outside [0, 1]: 0 is the start, 1 the tuned network.")
    first = dict(nnx.to_flat_state(nnx.state(start, nnx.Param)))
    for path, leaf in nnx.to_flat_state(nnx.state(end, nnx.Param)):
        # A head that merging untied repeats the published table at both ends.
        if is_new(".".join(map(str, path))) or path not in first:
            continue
        low, high = (value[...].astype(jnp.float32) for value in (first[path], leaf))
        leaf.set_value(((1.0 - alpha) * low + alpha * high).astype(leaf[...].dtype))
    return end
