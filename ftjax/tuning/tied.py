"""Giving a head that repeats the token table weights of its own, so that the table may change."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.layers import Network


def tied_table(network: Network) -> Network | None:
    """The table that a network's published head repeats; None where nothing repeats one.

    Args:
        network: one of a family's: a backbone, or one with a head.
    """
    backbone: Network = getattr(network, "backbone", None)
    if getattr(network, "lm_head", network) is None:
        if hasattr(backbone, "target_table"):
            return backbone.target_table()
        return getattr(backbone, "token_embedding", None) or backbone.shared
    if getattr(_masked_lm_head(network), "tied", False):
        return backbone.embeddings.word_embeddings
    if getattr(network, "decoder", network) is None:
        return backbone.embeddings.tok_embeddings
    return None


def untie(network: Network, table: jax.Array) -> None:
    """Gives a network's tied head weights of its own.

    Args:
        network: one that has a `tied_table`; changed in place, its config as well.
        table: [rows, features], what the head repeats.

    Raises:
        ValueError: the family's published form has no such head.
    """
    head = _masked_lm_head(network)
    if hasattr(network.backbone, "target_table") or (hasattr(network, "lm_head") and head):
        raise ValueError(
            "A head repeats the table of tokens, one of the two was adapted without the other, and "
            "this family has no form in which they differ. A run's export can be its adapter "
            "(--adapter)."
        )
    layer = _linear(table.T, head.bias if head else getattr(network, "bias", None), network.compute)
    if head:
        head.decoder, head.tied = layer, False
        del head.bias
    elif hasattr(network, "lm_head"):
        network.lm_head = nnx.data(layer)
    else:
        network.decoder, network.bias = nnx.data(layer), nnx.data(None)
    for module in (network, network.backbone):
        module.config = dataclasses.replace(module.config, tie_word_embeddings=False)


def _masked_lm_head(network: Network) -> Network | None:
    heads = (getattr(network, name, None) for name in ("head", "lm_head"))
    return next((head for head in heads if hasattr(head, "tied")), None)


def _linear(kernel: jax.Array, bias: nnx.Param | None, compute: Any) -> nnx.Linear:
    layer: Network = nnx.eval_shape(
        lambda: nnx.Linear(
            *kernel.shape, use_bias=bias is not None, dtype=compute.dtype, rngs=nnx.Rngs(0)
        )
    )
    layer.kernel.set_value(kernel.astype(jnp.float32))
    if bias is not None:
        layer.bias.set_value(bias[...].astype(jnp.float32))
    return layer
