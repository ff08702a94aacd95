import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ftjax.models.layers import Compute
from ftjax.models.vision import patch_grid, patch_projection, project_patches, resize_positions


def test_patches_are_seen_row_by_row():
    """An image whose pixels carry the index of their patch, and a kernel that takes the mean."""
    projection = patch_projection(1, 1, (2, 3), Compute(), rngs=nnx.Rngs(0))
    projection.kernel[...] = jnp.full((2, 3, 1, 1), 1 / 6)
    index = np.arange(6).reshape(2, 3)
    image = np.kron(index, np.ones((2, 3)))
    image = np.pad(image, ((0, 1), (0, 2)))[None, :, :, None].astype(np.float32)
    assert patch_grid(image.shape[1:3], (2, 3)) == (2, 3)
    np.testing.assert_allclose(project_patches(projection, image)[0, :, 0], np.arange(6), atol=1e-6)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((2, 3, 8, 8), r"channels first: transpose them with \(0, 2, 3, 1\)"),
        ((8, 8, 3), r"must be \[batch, height, width, 3\], not \[8, 8, 3\]"),
        ((2, 8, 8, 1), r"not \[2, 8, 8, 1\]"),
        ((2, 3, 8, 3), "3 x 8 pixels is smaller than one patch of 4 x 4"),
    ],
)
def test_other_shapes_are_refused(shape, words):
    projection = patch_projection(3, 5, 4, Compute(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=words):
        project_patches(projection, jnp.zeros(shape))


def test_positions_keep_their_extra_rows_and_a_constant_stays_one():
    table = jnp.concatenate([jnp.full((2, 3), 7.0), jnp.ones((12, 3))])
    resized = resize_positions(table, (3, 4), (5, 2), extra=2)
    np.testing.assert_allclose(resized[:2], 7.0)
    np.testing.assert_allclose(resized[2:], np.ones((10, 3)), atol=1e-6)
    assert resize_positions(table, (3, 4), (3, 4), extra=2) is table
