"""Activation functions against transformers', by the names that config.json has for them."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.activations import ACT2FN  # noqa: E402

from ftjax.models.layers import ACTIVATIONS  # noqa: E402


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes(name):
    # No point of the grid is one where a slope jumps.
    x = np.linspace(-13.01, 13.02, 400, dtype=np.float32)
    points = torch.tensor(x, requires_grad=True)
    values = ACT2FN[name](points)
    values.sum().backward()
    ours, slopes = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(x)
    # Where one tanh is 1 and the other not yet, slopes differ by 1e-5.
    np.testing.assert_allclose(ours, values.detach(), atol=4e-6, rtol=1e-6)
    np.testing.assert_allclose(slopes, points.grad, atol=1e-5, rtol=1e-6)
