import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.models import attention as module
from ftjax.models.attention import attention, make_attention_mask

BATCH, QUERIES, KEYS = 3, 6, 8


def reference(query, key, value, mask=None, bias=None, scale=None, soft_cap=None):
    """Attention in float64, one head of one row at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, queries, heads, head_dim = query.shape
    group = heads // key.shape[2]
    full = (batch, heads, queries, key.shape[1])
    mask = np.broadcast_to(True if mask is None else np.asarray(mask), full)
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), full)
    scale = 1 / np.sqrt(head_dim) if scale is None else scale
    out = np.zeros((batch, queries, heads, value.shape[-1]))
    for row in range(batch):
        for head in range(heads):
            scores = query[row, :, head] @ key[row, :, head // group].T * scale
            if soft_cap is not None:
                scores = soft_cap * np.tanh(scores / soft_cap)
            scores = scores + bias[row, head]
            for index in range(queries):
                seen = mask[row, head, index]
                if not seen.any():
                    seen, scores[index] = ~seen, 0
                weights = np.exp(scores[index, seen] - scores[index, seen].max())
                values = value[row, seen, head // group]
                out[row, index, head] = weights @ values / weights.sum()
    return out


def arrays(heads=4, kv_heads=4, head_dim=8, value_dim=None, seed=0):
    random = np.random.default_rng(seed)
    shapes = (
        (BATCH, QUERIES, heads, head_dim),
        (BATCH, KEYS, kv_heads, head_dim),
        (BATCH, KEYS, kv_heads, value_dim or head_dim),
    )
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def random_mask(*shape):
    mask = np.random.default_rng(7).random(shape) < 0.5
    mask[..., 3] = True
    return mask


MASKS = {
    "none": None,
    "keys": random_mask(BATCH, 1, 1, KEYS),
    "queries": random_mask(1, 1, QUERIES, KEYS),
    "full": random_mask(BATCH, 4, QUERIES, KEYS),
    "sees nothing": np.zeros((1, 1, QUERIES, KEYS), bool),
}
BIASES = {
    "none": None,
    "heads": np.random.default_rng(8).normal(size=(1, 4, QUERIES, KEYS)).astype(np.float32),
    "full": np.random.default_rng(9).normal(size=(BATCH, 4, QUERIES, KEYS)).astype(np.float32),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_is_the_equation(mask, bias, soft_cap, kv_heads):
    inputs = arrays(kv_heads=kv_heads)
    options = {"mask": MASKS[mask], "bias": BIASES[bias], "soft_cap": soft_cap}
    found = attention(*map(jnp.asarray, inputs), **options)
    np.testing.assert_allclose(found, reference(*inputs, **options), atol=2e-6)


@pytest.mark.parametrize("sizes", [{"head_dim": 5}, {"value_dim": 3}, {"heads": 1, "kv_heads": 1}])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_odd_sizes_and_scales(sizes, scale):
    inputs = arrays(**sizes)
    found = attention(*map(jnp.asarray, inputs), scale=scale)
    np.testing.assert_allclose(found, reference(*inputs, scale=scale), atol=2e-6)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 3e-2), (jnp.float16, 4e-3)])
def test_half_precision_in_and_out(dtype, tolerance):
    inputs = [jnp.asarray(x, dtype) for x in arrays(kv_heads=2)]
    mask = MASKS["keys"]
    found = attention(*inputs, mask=mask, bias=BIASES["heads"], soft_cap=30.0)
    assert found.dtype == dtype
    expected = reference(*inputs, mask=mask, bias=BIASES["heads"], soft_cap=30.0)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance)


def test_huge_scores_neither_overflow_nor_leak_through_the_mask():
    query, key, value = arrays()
    mask = np.zeros((1, 1, QUERIES, KEYS), bool)
    mask[..., 2] = True
    found = attention(1e4 * query, 1e4 * key, jnp.asarray(value), mask=mask)
    np.testing.assert_allclose(found, np.broadcast_to(value[:, 2:3], found.shape), rtol=1e-6)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("mask", ["none", "full"])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_gradients_are_the_slopes_of_the_equation(kv_heads, mask, soft_cap):
    inputs = [*arrays(kv_heads=kv_heads), BIASES["heads"]]
    random = np.random.default_rng(3)
    directions = [random.normal(size=x.shape) for x in inputs]
    weights = random.normal(size=(BATCH, QUERIES, 4, 8))

    def exact(step):
        moved = (x.astype(np.float64) + step * d for x, d in zip(inputs, directions, strict=True))
        *qkv, bias = moved
        return (reference(*qkv, MASKS[mask], bias, soft_cap=soft_cap) * weights).sum()

    def ours(query, key, value, bias):
        mixed = attention(query, key, value, mask=MASKS[mask], bias=bias, soft_cap=soft_cap)
        return jnp.sum(mixed * weights)

    gradients = jax.grad(ours, argnums=(0, 1, 2, 3))(*inputs)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert slope == pytest.approx((exact(1e-4) - exact(-1e-4)) / 2e-4, rel=1e-4)


def test_a_query_that_sees_nothing_gives_finite_gradients():
    mask = np.ones((BATCH, 1, QUERIES, KEYS), bool)
    mask[1, :, 2] = False
    gradients = jax.grad(
        lambda *inputs: jnp.sum(attention(*inputs, mask=mask) ** 2), argnums=(0, 1, 2)
    )(*map(jnp.asarray, arrays()))
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.asarray(gradients[0])[1, 2].any()


def test_dropout_is_of_the_probabilities():
    """With values of one the output is the sum of what was kept, 1 on average."""
    query, key, value = (jnp.asarray(x) for x in arrays())
    ones, drop = jnp.ones_like(value), jax.random.key(0)
    kept = attention(query, key, ones, dropout_rate=0.4, dropout_key=drop)
    assert not np.allclose(kept, 1)
    np.testing.assert_allclose(kept, np.broadcast_to(kept[..., :1], kept.shape), rtol=1e-6)
    total = [
        attention(query, key, ones, dropout_rate=0.4, dropout_key=jax.random.key(n)).mean()
        for n in range(50)
    ]
    assert np.mean(total) == pytest.approx(1, abs=4 * np.std(total) / np.sqrt(len(total)))
    np.testing.assert_array_equal(
        attention(query, key, value, dropout_rate=0.4), attention(query, key, value)
    )


def seen_by(query, key, *, valid=None, segments=None, causal=False, window=None):
    """Whether one query may see one key of one row."""
    if valid is not None and not valid[key]:
        return False
    if segments is not None and segments[query] != segments[key]:
        return False
    if causal and key > query:
        return False
    if window is None:
        return True
    return query - key < window if causal else abs(query - key) <= window


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("has_segments", [False, True])
@pytest.mark.parametrize("has_valid", [False, True])
def test_masks_element_by_element(has_valid, has_segments, causal, window):
    length = 7
    valid = np.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    segments = np.array([[1, 1, 1, 2, 2, 2, 0], [1] * 7, [1, 2, 3, 3, 3, 4, 4]])
    mask = make_attention_mask(
        jnp.asarray(valid) if has_valid else None,
        segment_ids=jnp.asarray(segments) if has_segments else None,
        causal=causal,
        window=window,
        length=length,
    )
    if not (has_valid or has_segments or causal or window):
        assert mask is None
        return
    expected = [
        [
            [
                seen_by(
                    query,
                    key,
                    valid=valid[row] if has_valid else None,
                    segments=segments[row] if has_segments else None,
                    causal=causal,
                    window=window,
                )
                for key in range(length)
            ]
            for query in range(length)
        ]
        for row in range(3)
    ]
    np.testing.assert_array_equal(np.broadcast_to(mask, (3, 1, 7, 7))[:, 0], expected)


@pytest.mark.parametrize("window", [None, 3])
def test_masks_of_later_queries_are_the_last_rows(window):
    """As decoding with a cache asks for them, the offset known only at run time."""
    whole = make_attention_mask(causal=True, window=window, length=9)
    last = jax.jit(
        lambda offset: make_attention_mask(
            causal=True, window=window, length=9, query_length=2, query_offset=offset
        )
    )(jnp.int32(5))
    np.testing.assert_array_equal(last, whole[:, :, 5:7])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_packed_texts_are_computed_as_if_alone(causal, window):
    random = np.random.default_rng(0)
    query, key, value = (random.normal(size=(1, 12, n, 8)).astype(np.float32) for n in (4, 2, 2))
    segments = jnp.asarray([[1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 0, 0]])
    mask = make_attention_mask(segment_ids=segments, causal=causal, window=window)
    packed = attention(*map(jnp.asarray, (query, key, value)), mask=mask)
    for start, end in ((0, 5), (5, 6), (6, 10)):
        alone = make_attention_mask(causal=causal, window=window, length=end - start)
        expected = attention(
            *(jnp.asarray(x[:, start:end]) for x in (query, key, value)), mask=alone
        )
        np.testing.assert_allclose(packed[:, start:end], expected, atol=2e-6)


# From here on: the way to cuDNN. The kernel needs a GPU; jax.nn.dot_product_attention computes the
# same on a CPU and takes its place.


@pytest.fixture
def on_gpu(monkeypatch):
    """Lets `attention` believe that there is a GPU; forgets what was found out before and after."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    module._cudnn_serves.cache_clear()
    yield
    module._cudnn_serves.cache_clear()


@pytest.fixture
def kernel(on_gpu, monkeypatch):
    """The calls of a kernel that works: the shapes of the queries."""
    calls = []

    def working(query, key, value, mask, bias, scale):
        calls.append(query.shape)
        bias = None if bias is None else bias.astype(query.dtype)
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=scale)

    monkeypatch.setattr(module, "_with_cudnn", working)
    return calls


HALF = jnp.bfloat16


def half_arrays(**sizes):
    return [jnp.asarray(x, HALF) for x in arrays(**sizes)]


def plain(inputs, **options):
    """What the einsums give."""
    options = {"mask": None, "bias": None, "scale": inputs[0].shape[-1] ** -0.5} | options
    return module._with_einsums(*inputs, **options)


def test_where_cudnn_is_missing_the_einsums_serve_and_the_reason_is_said_once(on_gpu, caplog):
    inputs = half_arrays()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(attention(*inputs), plain(inputs))
    assert len(caplog.records) == 1
    text = caplog.text
    assert "(6, 4, 8)" in text and "bfloat16" in text and "cuDNN" in text
    with caplog.at_level(logging.WARNING):
        attention(*inputs, mask=MASKS["keys"])
    assert len(caplog.records) == 2
    assert "with a mask" in caplog.text


@pytest.mark.parametrize(
    "mask, bias, scale, kv_heads",
    [
        ("none", "none", None, 4),
        ("keys", "none", None, 2),
        ("queries", "none", None, 1),
        ("full", "heads", 1.0, 4),
        ("keys", "full", None, 1),
    ],
)
def test_a_kernel_that_works_is_used(kernel, caplog, mask, bias, scale, kv_heads):
    inputs = half_arrays(kv_heads=kv_heads)
    options = {"mask": MASKS[mask], "bias": BIASES[bias], "scale": scale}
    found = attention(*inputs, **options)
    assert kernel[-1] == (BATCH, QUERIES, 4, 8)
    assert kernel[0] == (2, QUERIES, 4, 8)
    assert not caplog.records
    np.testing.assert_allclose(
        np.asarray(found, np.float64), reference(*inputs, **options), atol=3e-2
    )


def test_a_case_is_tried_once_whatever_the_number_of_rows(kernel):
    for rows in (2, 3):
        jax.eval_shape(attention, *(x[:rows] for x in half_arrays()))
    assert [shape[0] for shape in kernel] == [2, 2, 3]


def test_many_queries_are_tried_and_many_keys(kernel):
    random = np.random.default_rng(0)
    inputs = [jnp.asarray(random.normal(size=(1, 100, 2, 8)), HALF) for _ in range(3)]
    mask = make_attention_mask(causal=True, length=100)
    found = attention(*inputs, mask=mask)
    assert kernel[-1] == (1, 100, 2, 8)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), reference(*inputs, mask=mask), atol=3e-2
    )


def test_tried_while_the_caller_is_traced(kernel):
    inputs = half_arrays()

    @jax.checkpoint
    def block(query, scale):
        return attention(query, *inputs[1:], mask=MASKS["keys"]) * scale, None

    def loss(scale):
        lanes = jax.vmap(lambda query: jax.lax.scan(block, query, scale)[0])(inputs[0][None])
        return jnp.sum(lanes.astype(jnp.float32))

    def plain_loss(scale):
        once = plain(inputs, mask=MASKS["keys"]) * scale[0]
        twice = plain([once, *inputs[1:]], mask=MASKS["keys"]) * scale[1]
        return jnp.sum(twice.astype(jnp.float32))

    scale = jnp.ones(2, HALF)
    found, expected = jax.jit(jax.grad(loss))(scale), jax.jit(jax.grad(plain_loss))(scale)
    assert (2, QUERIES, 4, 8) in kernel and (BATCH, QUERIES, 4, 8) in kernel
    # Two ways of rounding sums in half precision.
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=0.15)


def without_mask(query, key, value, mask, bias, scale):
    return jax.nn.dot_product_attention(query, key, value, bias, scale=scale)


def without_bias_gradient(query, key, value, mask, bias, scale):
    bias = None if bias is None else jax.lax.stop_gradient(bias).astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=scale)


def not_a_number(query, key, value, mask, bias, scale):
    return query * jnp.nan


def refusing(query, key, value, mask, bias, scale):
    raise NotImplementedError("The head dim must be a multiple of 8.\nAnd so on.")


@pytest.mark.parametrize(
    "broken, reason",
    [
        (without_mask, "off by"),
        (without_bias_gradient, "off by 100%"),
        (not_a_number, "off by nan%"),
        (refusing, "The head dim must be a multiple of 8."),
    ],
)
def test_a_kernel_that_is_wrong_is_not_used(on_gpu, monkeypatch, caplog, broken, reason):
    monkeypatch.setattr(module, "_with_cudnn", broken)
    inputs = half_arrays()
    options = {"mask": jnp.asarray(MASKS["keys"]), "bias": jnp.asarray(BIASES["heads"])}
    with caplog.at_level(logging.WARNING):
        found = attention(*inputs, **options)
    np.testing.assert_array_equal(found, plain(inputs, **options))
    assert reason in caplog.text and "And so on" not in caplog.text


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"soft_cap": 3.0}, "soft cap"),
        ({"dropout_rate": 0.3, "dropout_key": 0}, "dropout"),
    ],
)
def test_what_the_kernel_does_not_have_stays_with_the_einsums(kernel, caplog, options, reason):
    inputs = half_arrays()
    if "dropout_key" in options:
        options = options | {"dropout_key": jax.random.key(options["dropout_key"])}
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(attention(*inputs, **options), plain(inputs, **options))
    assert not kernel
    assert reason in caplog.text


def test_dropout_that_is_off_keeps_the_kernel(kernel):
    attention(*half_arrays(), dropout_rate=0.3)
    attention(*half_arrays(), dropout_rate=0.0, dropout_key=jax.random.key(0))
    assert len(kernel) == 3


def test_values_of_another_width_are_refused_by_the_kernel(on_gpu, caplog):
    inputs = half_arrays(value_dim=16)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(attention(*inputs), plain(inputs))
    assert "value shape" in caplog.text


def test_on_a_cpu_nothing_is_tried(kernel, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    attention(*half_arrays())
    assert not kernel


def test_the_kernel_gets_whole_masks_and_biases_in_half_precision(monkeypatch):
    given = {}
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda q, k, v, bias, mask, **options: given.update(bias=bias, mask=mask, **options),
    )
    inputs = half_arrays()
    module._with_cudnn(*inputs, MASKS["keys"], jnp.zeros((1, 4, 1, KEYS)), 0.5)
    assert given["mask"].shape == (BATCH, 1, QUERIES, KEYS)
    assert given["bias"].shape == (1, 4, QUERIES, KEYS)
    assert given["bias"].dtype == HALF
    assert given["implementation"] == "cudnn" and given["scale"] == 0.5
