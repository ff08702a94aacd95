"""Which parameters move: each method marks the trainable part of a network.

A method takes a network (and may change its modules) and returns a predicate on parameter paths.
`partition` then splits the network once; from there on everything sees a trainable tree next to a
frozen one, both flat dicts from dotted path to array.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.attention import Prefix
from ftjax.models.prompt import Prompt
from ftjax.randomness import run_key
from ftjax.tuning import bottleneck, ia3, lora, masks, vera, virtual_tokens
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear
from ftjax.tuning.neftune import add_neftune
from ftjax.tuning.seen_rows import train_seen_rows
from ftjax.tuning.targets import modules_of, replace_module
from ftjax.tuning.tied import tied_table, untie

Parameters = dict[str, jax.Array]
Rebuild = Callable[[Parameters, Parameters], nnx.Module]

# Called as method(network, settings, key): `settings` is the `tuning` part of the config, `key` is
# for new parameters. The network may be changed; what is returned says which parameters move.
METHODS: dict[str, Callable[[nnx.Module, Any, jax.Array], Callable[[str], bool]]] = {
    "full": masks.full,
    "linear_probe": masks.linear_probe,
    "layers": masks.layers,
    "bitfit": masks.bitfit,
    "norms": masks.norms,
    "frozen_embeddings": masks.frozen_embeddings,
    "lora": lora.lora,
    "rslora": lora.rslora,
    "lora_plus": lora.lora_plus,
    "dora": lora.dora,
    "pissa": lora.pissa,
    "qlora": lora.qlora,
    "vera": vera.vera,
    "ia3": ia3.ia3,
    "houlsby": bottleneck.houlsby,
    "pfeiffer": bottleneck.pfeiffer,
    "prefix": virtual_tokens.prefix,
    "prompt": virtual_tokens.prompt,
    "p_tuning": virtual_tokens.p_tuning,
}


def tune(
    network: nnx.Module, settings: Any, seed: int, training_tokens: np.ndarray | None = None
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
    is_trainable = METHODS[settings.method](network, settings, run_key(seed, "tuning"))
    if training_tokens is not None:
        is_trainable = train_seen_rows(network, is_trainable, training_tokens)
    if settings.neftune_alpha > 0:
        add_neftune(network, settings.neftune_alpha)
    return partition(network, is_trainable)


def merge(network: nnx.Module) -> nnx.Module:
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


def partition(
    network: nnx.Module, is_trainable: Callable[[str], bool]
) -> tuple[Rebuild, Parameters, Parameters]:
    """Splits a network into what is trained, what stays, and how to put them together again.

    Args:
        network: the network.
        is_trainable: dotted parameter path -> whether it is trained.

    Returns:
        (rebuild, trainable, frozen). `rebuild(trainable, frozen)` is the network as a pure function
        of the two, to be called inside jit; values may have other dtypes or be tracers.

    Raises:
        ValueError: if nothing is trainable.
    """
    graphdef, state = nnx.split(network)
    leaves = list(nnx.to_flat_state(state))
    names = [".".join(map(str, path)) for path, _ in leaves]
    parameters = {name: leaf.get_value() for name, (_, leaf) in zip(names, leaves, strict=True)}
    trainable = {
        name: leaf.get_value()
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if isinstance(leaf, nnx.Param) and is_trainable(name)
    }
    frozen = {name: value for name, value in parameters.items() if name not in trainable}
    if not trainable:
        raise ValueError("The tuning method leaves no parameter trainable; choose another.")

    def rebuild(trainable: Parameters, frozen: Parameters) -> nnx.Module:
        values = trainable | frozen
        filled = [
            (path, leaf.replace(values[name]))
            for name, (path, leaf) in zip(names, leaves, strict=True)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(filled))

    return rebuild, trainable, frozen
