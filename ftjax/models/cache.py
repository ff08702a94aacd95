"""The key/value cache: what earlier tokens left behind, so that decoding looks at each token once.

A cache is a plain pytree `{"index": int32 scalar, "layers": [...]}`. `index` counts the slots in
use; each layer is a dict of arrays, `key` and `value` [batch, max_length, kv_heads, head_dim].
"""

from typing import Any

import jax
import jax.numpy as jnp

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


def append(layer: LayerCache, key: jax.Array, value: jax.Array, index: jax.Array) -> LayerCache:
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
