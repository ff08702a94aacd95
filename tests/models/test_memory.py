"""What rematerialisation and scanning over layers save, read off the programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ftjax.models import FAMILIES
from ftjax.models.layers import Compute

LAYERS, HIDDEN = 12, 32
SIZES = {
    "vocab_size": 50,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
FIELDS = {
    "bert": SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": SIZES,
}
IDS = np.random.default_rng(0).integers(3, 50, (4, 64)).astype(np.int32)
POLICIES = ("none", "dots", "block")


def loss_and_state(model_type, compute):
    """A function of the parameters, and parameters."""
    family = FAMILIES[model_type]
    config = family.parse_config(FIELDS[model_type])
    graphdef, state = nnx.split(family.networks["backbone"](config, compute, rngs=nnx.Rngs(0)))

    def loss(state):
        output = nnx.merge(graphdef, state)(IDS, np.ones_like(IDS))
        return jnp.mean(jnp.sin(output.last_hidden_state))

    return loss, state


def lowered(model_type, compute):
    loss, state = loss_and_state(model_type, compute)
    return jax.jit(jax.value_and_grad(loss)).lower(state)


@functools.cache
def compiled(model_type, compute):
    return lowered(model_type, compute).compile()


def bytes_kept(model_type, compute):
    """What the forward pass hands to the backward pass, before a compiler has a say."""
    loss, state = loss_and_state(model_type, compute)
    backward = jax.eval_shape(lambda state: jax.vjp(loss, state)[1], state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("model_type", FIELDS)
def test_what_is_recomputed_is_not_kept(model_type, scan_layers):
    none, dots, block = (
        bytes_kept(model_type, Compute(remat=policy, scan_layers=scan_layers))
        for policy in POLICIES
    )
    assert none > 2 * dots > 4 * block
    # A block keeps its input, [batch, length, hidden] of float32, and has its parameters anyway.
    _, state = loss_and_state(model_type, Compute())
    parameters = sum(leaf.size * 4 for leaf in jax.tree.leaves(state))
    assert block < 2 * LAYERS * IDS.size * HIDDEN * 4 + parameters


def test_the_compiled_program_takes_less_memory():
    """Of scanned layers: XLA's CPU compiler undoes what is rematerialised in unrolled ones."""
    none, dots, block = (
        compiled("llama", Compute(remat=policy, scan_layers=True))
        .memory_analysis()
        .temp_size_in_bytes
        for policy in POLICIES
    )
    assert none > 2 * dots > 3 * block


@pytest.mark.parametrize("remat", POLICIES)
def test_loss_and_gradients_are_the_same(remat):
    _, state = loss_and_state("llama", Compute())
    loss, gradients = compiled("llama", Compute(remat=remat, scan_layers=True))(state)
    plain_loss, plain = compiled("llama", Compute())(state)
    np.testing.assert_allclose(loss, plain_loss, atol=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for found, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * largest)


@pytest.mark.parametrize("model_type", FIELDS)
def test_a_scanned_program_does_not_grow_by_a_block_for_each_layer(model_type):
    plain, scanned = (
        len(lowered(model_type, Compute(scan_layers=scan)).as_text()) for scan in (False, True)
    )
    assert scanned < plain / 2
