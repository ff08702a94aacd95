"""Attention for every family: one function, and the masks it takes."""

import jax
import jax.numpy as jnp

from ftjax.models.dropout import dropout


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), softmax in float32.

    Args:
        query: [batch, query_length, heads, head_dim].
        key: [batch, key_length, kv_heads, head_dim]; kv_heads divides heads (Ainslie et al. 2023).
        value: [batch, key_length, kv_heads, value_dim].
        mask: bool, broadcastable to [batch, heads, query_length, key_length]; True may be seen.
        bias: added to the scores, same shape rule as `mask`.
        scale: of the scores; 1/sqrt(head_dim) by default.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap) (Gemma 2).
        dropout_rate: of the attention probabilities; needs `dropout_key` to have an effect.
        dropout_key: random key, None for evaluation.

    Returns:
        [batch, query_length, heads, value_dim] in the dtype of `query`.
    """
    batch, query_length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    grouped = query.reshape(batch, query_length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("bqkgd,bskd->bkgqs", grouped * scale, key)
    scores = scores.reshape(batch, heads, query_length, -1).astype(jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    probabilities = dropout(probabilities, dropout_rate, dropout_key)
    probabilities = probabilities.reshape(batch, kv_heads, heads // kv_heads, query_length, -1)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", probabilities, value)
    return mixed.reshape(batch, query_length, heads, value.shape[-1])


def make_attention_mask(
    valid: jax.Array | None = None,
    *,
    segment_ids: jax.Array | None = None,
    causal: bool = False,
    window: int | None = None,
    length: int | None = None,
    query_length: int | None = None,
    query_offset: jax.Array | int = 0,
) -> jax.Array | None:
    """Which keys each query may see, or None if all.

    Args:
        valid: [batch, length], nonzero where a token is real.
        segment_ids: int [batch, length]; tokens see their own segment only (packed rows).
        causal: whether a query sees only itself and what comes before it.
        window: with `causal`, how many tokens back a query sees, itself included; without, half the
            width of a symmetric window: |query - key| <= window.
        length: needed when neither `valid` nor `segment_ids` is given.
        query_length: number of queries where they are fewer than the keys (decoding with a cache);
            `length` by default. Not together with `segment_ids`.
        query_offset: position of the first query among the keys.

    Returns:
        bool [batch or 1, 1, query_length or 1, length], or None.
    """
    parts = []
    if valid is not None:
        parts.append(valid.astype(bool)[:, None, None, :])
        length = valid.shape[1]
    if segment_ids is not None:
        parts.append(segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
        length = segment_ids.shape[1]
    if causal or window is not None:
        queries = jnp.arange(length if query_length is None else query_length) + query_offset
        distance = queries[:, None] - jnp.arange(length)[None, :]
        if causal:
            parts.append((distance >= 0)[None, None])
        if window is not None:
            near = distance < window if causal else jnp.abs(distance) <= window
            parts.append(near[None, None])
    if not parts:
        return None
    mask = parts[0]
    for part in parts[1:]:
        mask = mask & part
    return mask
