"""On a GPU: the numbers of the CPU, cuDNN's kernel instead of the einsums, the same bits twice.

Skipped elsewhere. With `jax[cuda13]` installed: `python -m pytest tests/system/test_gpu.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopped import whole_and_continued
from tiny import FAMILY_NAMES, make_case, quiet

from ftjax.config import override
from ftjax.losses.forward import forward, of_outputs
from ftjax.models import attention as module
from ftjax.models.attention import attention, make_attention_mask
from ftjax.models.generate import generate
from ftjax.pretrained.load import load_model
from ftjax.training.run import run
from ftjax.tuning.partition import partition

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_loss_and_gradients_are_those_of_the_cpu(model_type):
    network, batch, loss = make_case(model_type)
    rebuild, parameters, frozen = partition(network, lambda path: True)

    @jax.jit
    def loss_and_gradients(parameters):
        def mean(parameters):
            passed = forward(lambda own, key: rebuild(own, frozen), parameters, frozen, batch, None)
            total, weight, _ = of_outputs(loss)(passed)
            return total / weight

        return jax.value_and_grad(mean)(parameters)

    # A GPU's own choice for float32 products is TensorFloat-32, which keeps three digits.
    with jax.default_matmul_precision("highest"):
        found = loss_and_gradients(parameters)
        with jax.default_device(jax.devices("cpu")[0]):
            expected = loss_and_gradients(jax.tree.map(np.asarray, parameters))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    size = max(np.abs(gradient).max() for gradient in expected[1].values())
    for path, gradient in expected[1].items():
        np.testing.assert_allclose(
            found[1][path], gradient, atol=2e-5 * size, rtol=1e-4, err_msg=path
        )


SEGMENTS = jnp.asarray([[1] * 40 + [2] * 20 + [0] * 4, [1] * 64])
VALID = (SEGMENTS > 0).astype(jnp.int32)


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize(
    "mask",
    [
        None,
        make_attention_mask(VALID),
        make_attention_mask(causal=True, length=64),
        make_attention_mask(segment_ids=SEGMENTS, causal=True),
        make_attention_mask(segment_ids=SEGMENTS, causal=True, window=16),
    ],
    ids=["none", "padded", "causal", "packed", "window"],
)
def test_the_kernel_is_used_and_agrees(monkeypatch, mask, kv_heads):
    random = np.random.default_rng(0)
    shapes = [(2, 64, heads, 64) for heads in (8, kv_heads, kv_heads)]
    inputs = [jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in shapes]
    weights = random.normal(size=shapes[0]).astype(np.float32)
    calls, kernel = [], module._with_cudnn

    def counted(*arguments):
        calls.append(arguments)
        return kernel(*arguments)

    def outputs_and_gradients(compute, inputs):
        def loss(inputs):
            mixed = compute(*inputs).astype(jnp.float32)
            return jnp.sum(mixed * weights), mixed

        return jax.jit(jax.grad(loss, has_aux=True))(inputs)

    def einsums(query, key, value):
        return module._with_einsums(query, key, value, mask, None, 64**-0.5)

    monkeypatch.setattr(module, "_with_cudnn", counted)
    module._cudnn_serves.cache_clear()
    found = outputs_and_gradients(lambda *inputs: attention(*inputs, mask=mask), inputs)
    assert len(calls) > 1, "once by the probe, and once for the case"
    expected = outputs_and_gradients(einsums, [x.astype(jnp.float32) for x in inputs])
    for ours, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        ours, exact = np.asarray(ours, np.float32), np.asarray(exact)
        assert np.abs(ours - exact).max() < 0.03 * np.abs(exact).max()


def test_greedy_texts_are_those_of_the_cpu(tiny_llama):
    prompts = [[5, 9, 33], [7] * 11, [40]]
    with jax.default_matmul_precision("highest"):
        ours = generate(load_model(tiny_llama, "causal_lm"), prompts, max_new_tokens=12)
        with jax.default_device(jax.devices("cpu")[0]):
            theirs = generate(load_model(tiny_llama, "causal_lm"), prompts, max_new_tokens=12)
    assert ours == theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_ends_with_the_same_bits_stopped_or_not(tmp_path, monkeypatch, tiny_config, dtype):
    config = override(tiny_config, {"model.dtype": dtype, "evaluation.every": 4})
    whole, _ = whole_and_continued(config, tmp_path, monkeypatch, batch=10, step=8)
    assert run(config, tmp_path / "again", quiet()).metrics == whole.metrics
