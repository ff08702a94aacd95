"""What all decoders share: masks and positions, with or without a cache, and the run of blocks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftjax.models.attention import make_attention_mask
from ftjax.models.cache import apply_cached_blocks
from ftjax.models.layers import Compute, Network, Output, apply_blocks
from ftjax.models.rotary import Rotary


class Context(NamedTuple):
    """What all blocks of one call share.

    Attributes:
        masks: window -> bool [batch or 1, 1, query length, key length], None where all is seen.
        rotaries: rotary embedding -> its tables.
        start: slot of the cache where this call's tokens begin, 0 without a cache.
    """

    masks: Mapping[int | None, jax.Array | None]
    rotaries: Mapping[Rotary, tuple[jax.Array, jax.Array]]
    start: jax.Array | int


def default_positions(length: int, cache: dict | None) -> jax.Array:
    """Int [1, length]: 0, 1, 2, ..., or what follows the tokens of the cache."""
    return jnp.arange(length)[None] + (0 if cache is None else cache["index"])


def decoder_masks(
    windows: Iterable[int | None],
    length: int,
    attention_mask: jax.Array | None,
    segment_ids: jax.Array | None,
    cache: dict | None,
    *,
    causal: bool = True,
) -> dict[int | None, jax.Array | None]:
    """The attention mask of each window.

    Args:
        windows: of the layers.
        length: number of tokens of this call.
        attention_mask: [batch, length], with a cache [batch, max_length].
        segment_ids: int [batch, length].
        cache: whether, and where, keys of earlier tokens are.
        causal: whether a token sees only what comes before it.

    Raises:
        ValueError: a mask that does not fit the cache, or a cache where none can be used.
    """
    if cache is None:
        common = {"length": length, "segment_ids": segment_ids}
    elif segment_ids is not None or not causal:
        raise ValueError("A cache serves causal decoding of one text per row, not packed rows.")
    else:
        max_length = cache["layers"][0]["key"].shape[1]
        if attention_mask is not None and attention_mask.shape[1] != max_length:
            raise ValueError(
                f"attention_mask has {attention_mask.shape[1]} columns; with a cache it needs one "
                f"for each of its {max_length} slots."
            )
        common = {
            "length": max_length,
            "query_length": length,
            "query_offset": cache["index"],
        }
    return {
        window: make_attention_mask(attention_mask, causal=causal, window=window, **common)
        for window in windows
    }


def run_decoder(
    blocks: Sequence[Network],
    norm: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    context: Context,
    cache: dict | None,
    *,
    key: jax.Array | None,
    compute: Compute,
) -> Output:
    """Runs the blocks and the final norm, with or without a cache.

    Args:
        blocks: called as `block(hidden, context, key, layer of the cache)`.
        norm: after the last block.
        hidden: [batch, length, hidden].
        context: what the blocks share.
        cache: before these tokens.
        key: random key for dropout.
        compute: what is rematerialised and whether blocks are scanned.
    """
    if cache is None:
        hidden, states = apply_blocks(
            blocks,
            hidden,
            lambda block, hidden, key: block(hidden, context, key)[0],
            key=key,
            compute=compute,
        )
    else:
        hidden, states, cache = apply_cached_blocks(
            blocks,
            hidden,
            lambda block, hidden, layer: block(hidden, context, None, layer),
            cache,
        )
    hidden = norm(hidden)
    return Output(hidden, (*states[:-1], hidden), cache=cache)
