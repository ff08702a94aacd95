"""One vector of many tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.models.heads import last_token, mean_of_tokens

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
