import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ftjax.models.dropout import dropout, split_key

SHAPE = (512, 512)


def zeros(rate, key, shape=SHAPE):
    return np.asarray(dropout(jnp.ones(shape), rate, key)) == 0


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_as_many_zeros_as_asked_and_the_rest_scaled(rate):
    kept = np.asarray(dropout(jnp.ones(SHAPE), rate, jax.random.key(3)))
    count = (kept == 0).sum()
    assert stats.binomtest(int(count), kept.size, rate).pvalue > 1e-4
    np.testing.assert_allclose(kept[kept != 0], 1 / (1 - rate), rtol=1e-6)


def test_no_key_or_no_rate_changes_nothing():
    x = jnp.arange(6.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (0, 12), (64, 0)])
def test_neighbours_are_independent(shift):
    mask = zeros(0.5, jax.random.key(1)).astype(float)
    other = np.roll(mask, shift, axis=(0, 1))
    correlation = np.corrcoef(mask.ravel(), other.ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(mask.size)


def test_keys_are_independent_even_when_they_are_close():
    masks = [zeros(0.5, jax.random.fold_in(jax.random.key(0), step)) for step in range(8)]
    masks += [zeros(0.5, jax.random.wrap_key_data(jnp.array([0, n], jnp.uint32))) for n in range(8)]
    correlations = np.corrcoef(np.stack([mask.ravel() for mask in masks]).astype(float))
    off_diagonal = correlations[~np.eye(len(masks), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(masks[0].size)


def test_rows_and_columns_have_even_shares():
    mask = zeros(0.5, jax.random.key(5))
    for axis in (0, 1):
        counts = mask.sum(axis)
        statistic = ((counts - 256) ** 2 / 128).sum()
        assert stats.chi2(512).sf(statistic) > 1e-4


def test_gradient_goes_through_what_was_kept():
    key = jax.random.key(2)
    gradient = jax.grad(lambda x: dropout(x, 0.3, key).sum())(jnp.ones(1000))
    np.testing.assert_array_equal(np.asarray(gradient == 0), zeros(0.3, key, (1000,)))


def test_split_key():
    assert split_key(None, 3) == [None] * 3
    assert (
        len({tuple(jax.random.key_data(k).tolist()) for k in split_key(jax.random.key(0), 3)}) == 3
    )
