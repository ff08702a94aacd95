import jax
import jax.numpy as jnp
import numpy as np

from ftjax.models.dinov2 import drop_path


def test_drop_path_leaves_out_whole_samples():
    branch = jnp.ones((4000, 2, 3))
    kept = np.asarray(drop_path(branch, 0.25, jax.random.key(0)))
    assert (kept == kept[:, :1, :1]).all()
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    # Four standard deviations of a mean over 4000 draws.
    assert abs((kept[:, 0, 0] == 0).mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    np.testing.assert_array_equal(drop_path(branch, 0.25, None), branch)
