"""A method put on a network, and taken off it again."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.attention import Prefix
from ftjax.models.layers import Network
from ftjax.models.prompt import Prompt
from ftjax.randomness import run_key
from ftjax.tuning import METHODS
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear
from ftjax.tuning.neftune import add_neftune
from ftjax.tuning.partition import Parameters, Rebuild, partition
from ftjax.tuning.seen_rows import train_seen_rows
from ftjax.tuning.targets import modules_of, replace_module
from ftjax.tuning.tied import tied_table, untie


def tune(
    network: Network, settings: Any, seed: int, training_tokens: np.ndarray | None = None
) -> tuple[Rebuild, Parameters, Parameters]:
    """Applies the method of a config to a task's network, and splits it; see `partition`.

    Args:
        network: with the pretrained network in `backbone`; changed in place.
        settings: the `tuning` part of the config.
        seed: the run's; new parameters come from it, the same ones each time.
        training_tokens: int, the tokens whose rows of a token table are trained; None for all.

    Raises:
        ValueError: the method does not fit the network; says what to change.
    """
    is_trainable = METHODS[settings.method].apply(network, settings, run_key(seed, "tuning"))
    if training_tokens is not None:
        is_trainable = train_seen_rows(network, is_trainable, training_tokens)
    if (alpha := settings.get("neftune_alpha", 0.0)) > 0:
        add_neftune(network, alpha)
    return partition(network, is_trainable)


def merge(network: Network) -> Network:
    """Puts plain layers in the place of adapted ones; the network computes the same.

    A head that is tied to an adapted table gets weights of its own, since it repeats the published
    table and not the adapted one.

    Args:
        network: a task's, with the pretrained network in `backbone`; changed in place, and
            returned.

    Raises:
        ValueError: what was learned is no change of weights.
    """
    if any(isinstance(module, Prefix | Prompt) for _, module in nnx.iter_modules(network)):
        raise ValueError(
            "Virtual tokens are no change of weights and cannot be merged. Use the run itself: "
            "scripts/predict.py and scripts/chat.py take --run."
        )
    for path, layer in modules_of(network, (AdaptedLinear, AdaptedEmbed)).items():
        if isinstance(layer, AdaptedEmbed) and layer is tied_table(network.backbone):
            head, table = layer.head_table(), layer.merged_table()
            if not jnp.array_equal(head, table):
                untie(network.backbone, head)
        replace_module(network, path, layer.merged())
    return network
