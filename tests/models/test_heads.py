"""One vector of many tokens, and what a classifier hands its network."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import make_case

from ftjax.models import FAMILIES
from ftjax.models.heads import TextClassifier, last_token, mean_of_tokens

HIDDEN = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
# Right padding, left padding, full, and a row without any token.
REAL = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.int32, np.float32, bool])
def test_last_token(dtype):
    found = last_token(jnp.asarray(HIDDEN), jnp.asarray(REAL, dtype))
    expected = [HIDDEN[0, 1], HIDDEN[1, 2], HIDDEN[2, 2], HIDDEN[3, 0]]
    np.testing.assert_array_equal(found, expected)


def test_mean_of_tokens():
    found = mean_of_tokens(jnp.asarray(HIDDEN), jnp.asarray(REAL))
    expected = [HIDDEN[0, :2].mean(0), HIDDEN[1, 1:].mean(0), HIDDEN[2].mean(0), [0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "matters"),
    [("bert", True), ("electra", True), ("distilbert", False), ("modernbert", False)],
)
def test_token_types_only_where_the_network_reads_them(model_type, matters):
    network, batch, _ = make_case(model_type)
    types = np.zeros_like(batch["input_ids"])
    types[:, 3:] = 1
    changed = not np.allclose(network(batch), network(batch | {"token_type_ids": types}))
    assert changed == matters


def test_gpt2_takes_no_token_types_and_no_row_beyond_its_positions():
    family = FAMILIES["gpt2"]
    fields = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 6}
    backbone = family.networks["backbone"](family.parse_config(fields), rngs=nnx.Rngs(0))
    network = TextClassifier(backbone, 3, pooling="last", dropout_rate=0.0, rngs=nnx.Rngs(0))
    ids = np.arange(2, 8, dtype=np.int32)[None]
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with_types = network(batch | {"token_type_ids": np.ones_like(ids)})
    np.testing.assert_array_equal(with_types, network(batch))
    longer = np.zeros((1, 7), np.int32)
    with pytest.raises(ValueError, match="7 tokens does not fit the 6 positions"):
        backbone(longer, position_ids=longer)
