"""Attention for every family: one function, and the masks it takes.

There are two ways to compute it: einsums, which know every option and run everywhere, and cuDNN's
fused kernel, which never writes the scores to memory. The kernel is used on a GPU in the cases in
which it has shown there, on random numbers, that it gives what the einsums give.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.dropout import dropout

LOGGER = logging.getLogger(__name__)

# The kernel computes in half precision: it may be off by this share of the largest value.
PROBE_TOLERANCE = 0.05
# As many of the last queries are compared, so that the einsums' scores stay small.
PROBE_QUERIES = 64


class Prefix(nnx.Module):
    """Keys and values of virtual tokens, which every query sees before those of real ones.

    Attributes:
        key: [tokens, kv_heads, head_dim].
        value: [tokens, kv_heads, head_dim].
    """

    def __init__(self, key: nnx.Variable, value: nnx.Variable):
        self.key = key
        self.value = value


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    prefix: Prefix | None = None,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1), softmax in float32.

    A query that may see no key gets the mean of all values.

    Args:
        query: [batch, query_length, heads, head_dim].
        key: [batch, key_length, kv_heads, head_dim]; kv_heads divides heads (Ainslie et al. 2023).
        value: [batch, key_length, kv_heads, value_dim].
        prefix: virtual tokens in front of the keys and values; mask and bias do not know of them.
        mask: bool, four dimensions broadcastable to [batch, heads, query_length, key_length]; True
            may be seen.
        bias: added to the scores, same shape rule as `mask`.
        scale: of the scores; 1/sqrt(head_dim) by default.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap) (Gemma 2).
        dropout_rate: of the attention probabilities; needs `dropout_key` to have an effect.
        dropout_key: random key, None for evaluation.

    Returns:
        [batch, query_length, heads, value_dim] in the dtype of `query`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if prefix is not None:
        key, value, mask, bias = _with_prefix(prefix, key, value, mask, bias)
    if jax.default_backend() == "gpu" and _cudnn_serves(
        *(_first_rows(array) for array in (query, key, value, mask, bias)),
        scale,
        soft_cap is not None,
        dropout_key is not None and dropout_rate > 0.0,
    ):
        return _with_cudnn(query, key, value, mask, bias, scale)
    return _with_einsums(query, key, value, mask, bias, scale, soft_cap, dropout_rate, dropout_key)


def _with_prefix(prefix, key, value, mask, bias):
    tokens, batch = prefix.key.shape[0], key.shape[0]

    def in_front(new, old):
        rows = jnp.broadcast_to(new[...].astype(old.dtype), (batch, *new.shape))
        return jnp.concatenate([rows, old], axis=1)

    room = ((0, 0), (0, 0), (0, 0), (tokens, 0))
    if mask is not None:
        mask = jnp.pad(mask, room, constant_values=True)
    if bias is not None:
        bias = jnp.pad(bias, room)
    return in_front(prefix.key, key), in_front(prefix.value, value), mask, bias


def _with_einsums(
    query, key, value, mask, bias, scale, soft_cap=None, dropout_rate=0.0, dropout_key=None
):
    batch, query_length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
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


def _with_cudnn(query, key, value, mask, bias, scale):
    # It wants a row for each query and a column for each key, and the bias in the query's dtype.
    lengths = (query.shape[1], key.shape[1])
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], *lengths))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], *lengths)).astype(query.dtype)
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, scale=scale, implementation="cudnn"
    )


@functools.cache
def _cudnn_serves(query, key, value, mask, bias, scale, has_soft_cap, has_dropout) -> bool:
    """Whether the kernel can take the place of the einsums; if not, says why, once."""
    if has_soft_cap:
        problem = "it has no soft cap"
    elif has_dropout:
        problem = "it has no dropout"
    else:
        problem = _cudnn_problem(query, key, value, mask, bias, scale)
    if problem is not None:
        given = [name for name, x in (("mask", mask), ("bias", bias)) if x is not None]
        LOGGER.warning(
            "Attention of queries %s to keys %s, %s%s, is computed without cuDNN's kernel: %s.",
            query.shape[1:],
            key.shape[1:],
            query.dtype,
            "".join(f", with a {name}" for name in given),
            problem,
        )
    return problem is None


def _first_rows(array: jax.Array | None) -> jax.ShapeDtypeStruct | None:
    """Shape and dtype of at most two rows: the kernel does not care how many more there are."""
    if array is None:
        return None
    return jax.ShapeDtypeStruct((min(array.shape[0], 2), *array.shape[1:]), array.dtype)


def _cudnn_problem(query, key, value, mask, bias, scale) -> str | None:
    """Computes the case on random numbers both ways, with gradients; None if they agree."""
    random = np.random.default_rng(0)
    arrays = [
        None if like is None else random.normal(size=like.shape).astype(like.dtype)
        for like in (query, key, value, bias)
    ]
    if mask is not None:
        mask = random.random(mask.shape) < 0.5
        mask[..., 0] = True
    weights = random.normal(size=(*query.shape[:3], value.shape[-1]))[:, -PROBE_QUERIES:]

    def last(array):
        return array if array is None or array.shape[-2] == 1 else array[..., -PROBE_QUERIES:, :]

    def kernel(query, key, value, bias, mask):
        return _with_cudnn(query, key, value, mask, bias, scale)[:, -PROBE_QUERIES:]

    def einsums(query, key, value, bias, mask):
        return _with_einsums(query[:, -PROBE_QUERIES:], key, value, last(mask), last(bias), scale)

    def output_and_gradients(compute, arrays):
        def loss(arrays):
            mixed = compute(*arrays, mask).astype(jnp.float32)
            return jnp.sum(mixed * weights.astype(np.float32)), mixed

        return jax.tree.leaves(jax.jit(jax.grad(loss, has_aux=True))(arrays))

    # The caller is being traced; this is computed here and now.
    with jax.ensure_compile_time_eval():
        exact = [None if array is None else array.astype(np.float32) for array in arrays]
        expected = output_and_gradients(einsums, exact)
        try:
            found = output_and_gradients(kernel, arrays)
        except Exception as error:  # whatever it is, there the kernel cannot be used
            return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    pairs = [
        (np.asarray(a, np.float32), np.asarray(b)) for a, b in zip(found, expected, strict=True)
    ]
    off = np.max([np.abs(a - b).max() / (np.abs(b).max() + 1e-6) for a, b in pairs])
    return None if off <= PROBE_TOLERANCE else f"its results are off by {off:.0%}"


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
