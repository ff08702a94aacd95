"""What all families' layers have in common: products in two dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import FAMILY_NAMES, make_case

from ftjax.config import base_config
from ftjax.models.layers import Compute, embedding, linear, matmul_2d
from ftjax.tuning.tune import tune


@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 3), (2, 0, 3), (2, 5, 3), (2, 2, 2, 3)])
def test_matmul_2d_is_the_product(shape):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=shape), random.normal(size=(3, 7))
    np.testing.assert_allclose(matmul_2d(x, kernel), x @ kernel, rtol=1e-5, atol=1e-6)


def test_layers_of_half_precision():
    compute, rngs = Compute(dtype=jnp.bfloat16), nnx.Rngs(0)
    x = jnp.ones((2, 5, 4))
    layer, table = linear(4, 3, compute, rngs=rngs), embedding(9, 4, compute, rngs=rngs)
    assert layer.kernel.dtype == table.embedding.dtype == jnp.float32
    assert layer(x).dtype == table.attend(x).dtype == jnp.bfloat16


def products(jaxpr):
    """All dot_generals without batch dimensions: those of activations with weights."""
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            _, (batch, _) = equation.params["dimension_numbers"]
            if not batch:
                yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from products(getattr(inner, "jaxpr", inner))


def assert_two_dimensions(network, batch, loss):
    graphdef, parameters, rest = nnx.split(network, nnx.Param, ...)

    def total(parameters):
        outputs = nnx.merge(graphdef, parameters, rest)(batch)
        return jnp.sum(jax.tree.leaves(loss(outputs, batch))[0])

    found = list(products(jax.make_jaxpr(jax.grad(total))(parameters).jaxpr))
    assert found
    for equation in found:
        shapes = [variable.aval.shape for variable in equation.invars]
        assert all(len(shape) == 2 for shape in shapes), equation.source_info.traceback


@pytest.mark.parametrize("model_type", FAMILY_NAMES)
def test_every_product_with_weights_has_two_dimensions(model_type):
    """Forward and backward; in three, XLA on CPU computes activations twice."""
    assert_two_dimensions(*make_case(model_type))


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "vera", "ia3", "houlsby"])
def test_and_of_every_adapter(method):
    network, batch, loss = make_case("bert")
    settings = base_config(method=method).tuning
    if "rank" in settings:
        settings.rank = 2
    tune(network, settings, seed=0)
    assert_two_dimensions(network, batch, loss)
