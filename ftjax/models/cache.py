"""The key/value cache: what earlier tokens left behind, so that decoding looks at each token once.

A cache is a plain pytree `{"index": int32 scalar, "layers": [...]}`. `index` counts the slots in
use; each layer is a dict of arrays, `key` and `value` [batch, max_length, kv_heads, head_dim], and
in encoder-decoders `cross_key` and `cross_value` [batch, encoder_length, kv_heads, head_dim].
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.models.layers import Network

LayerCache = dict[str, jax.Array]


def empty_cache(
    num_layers: int, batch: int, max_length: int, kv_heads: int, head_dim: int, dtype: Any
) -> dict:
    """A cache with room for `max_length` tokens per row, none of them in use."""
    shape = (batch, max_length, kv_heads, head_dim)
    return {
        "index": jnp.zeros((), jnp.int32),
        "layers": [
            {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}
            for _ in range(num_layers)
        ],
    }


def append(
    layer: LayerCache, key: jax.Array, value: jax.Array, index: jax.Array | int
) -> LayerCache:
    """The layer with new keys and values written from slot `index` on.

    Args:
        layer: one layer of a cache.
        key: [batch, new, kv_heads, head_dim]; `index + new` must not exceed `max_length`: under jit
            this cannot be checked, and the last slots would be overwritten.
        value: as `key`.
        index: int scalar.
    """
    return layer | {
        name: jax.lax.dynamic_update_slice(
            layer[name], new.astype(layer[name].dtype), (0, index, 0, 0)
        )
        for name, new in (("key", key), ("value", value))
    }


def apply_cached_blocks(
    blocks: Sequence[Network],
    hidden: jax.Array,
    call: Callable[[Network, jax.Array, LayerCache], tuple[jax.Array, LayerCache]],
    cache: dict,
) -> tuple[jax.Array, tuple[jax.Array, ...], dict]:
    """Runs `hidden, layer = call(block, hidden, layer)` over all blocks, without dropout.

    Args:
        blocks: the blocks in order, one per layer of the cache.
        hidden: [batch, new, hidden].
        call: applies one block; appends to its layer at `cache["index"]`.
        cache: before these tokens.

    Returns:
        The last hidden state, the hidden state before each block and after the last, and the cache
        after these tokens.
    """
    states, layers = [hidden], []
    for block, layer in zip(blocks, cache["layers"], strict=True):
        hidden, layer = call(block, hidden, layer)
        states.append(hidden)
        layers.append(layer)
    return hidden, tuple(states), {"index": cache["index"] + hidden.shape[1], "layers": layers}


def add_cross_attention(
    cache: dict, attentions: Iterable[Network], encoder_hidden_states: jax.Array
) -> dict:
    """The cache with each layer's keys and values of the encoder's output, computed once.

    Args:
        cache: of a decoder.
        attentions: each block's cross-attention, with a method `keys_and_values`.
        encoder_hidden_states: [batch, encoder_length, hidden].
    """
    layers = []
    for layer, attention in zip(cache["layers"], attentions, strict=True):
        key, value = attention.keys_and_values(encoder_hidden_states)
        layers.append(layer | {"cross_key": key, "cross_value": value})
    return cache | {"layers": layers}


def cross_keys_and_values(
    layer: LayerCache | None, attention: Network, encoder_hidden_states: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the encoder's output, from the cache where they are in it."""
    if layer is not None and "cross_key" in layer:
        return layer["cross_key"], layer["cross_value"]
    return attention.keys_and_values(encoder_hidden_states)
