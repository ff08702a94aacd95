"""What the networks that see images share: patches, and positions for images of any size.

Images are [batch, height, width, channels] here, in the published networks [batch, channels,
height, width].
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.layers import Compute
from ftjax.models.schema import Bounds

Side = Annotated[int, Bounds(1, 2**14)]
Size = Side | tuple[Side, Side]


def height_and_width(size: Size) -> tuple[int, int]:
    """A config's `image_size` or `patch_size`, which is a number where both are equal."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def patch_grid(image_size: Size, patch_size: Size) -> tuple[int, int]:
    """Rows and columns of whole patches in an image; what is left at the far edges is not seen."""
    height, width = height_and_width(image_size)
    patch_height, patch_width = height_and_width(patch_size)
    return height // patch_height, width // patch_width


def patch_projection(
    channels: int,
    features: int,
    patch_size: Size,
    compute: Compute,
    *,
    rngs: nnx.Rngs,
    bias: bool = True,
):
    """A convolution that sees each patch once: kernel [patch, patch, channels, features]."""
    window = height_and_width(patch_size)
    return nnx.Conv(
        channels,
        features,
        kernel_size=window,
        strides=window,
        padding="VALID",
        use_bias=bias,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        kernel_init=nnx.initializers.normal(0.02),
        rngs=rngs,
    )


def project_patches(projection: nnx.Conv, pixel_values: jax.Array) -> jax.Array:
    """[batch, height, width, channels] -> [batch, patches, features], row by row.

    Raises:
        ValueError: for another shape, with a hint where the channels seem to stand first, or for an
            image smaller than one patch.
    """
    channels = projection.in_features
    height, width = (int(side) for side in projection.kernel_size)
    shape = pixel_values.shape
    if len(shape) != 4 or shape[3] != channels:
        hint = ""
        if len(shape) == 4 and shape[1] == channels:
            hint = " These have the channels first: transpose them with (0, 2, 3, 1)."
        raise ValueError(
            f"pixel_values must be [batch, height, width, {channels}], not {list(shape)}.{hint}"
        )
    if shape[1] < height or shape[2] < width:
        raise ValueError(
            f"An image of {shape[1]} x {shape[2]} pixels is smaller than one patch of "
            f"{height} x {width}."
        )
    patches = projection(pixel_values)
    return patches.reshape(shape[0], -1, projection.out_features)


def resize_positions(
    table: jax.Array, before: tuple[int, int], after: tuple[int, int], extra: int
) -> jax.Array:
    """Position embeddings learned for one grid of patches, interpolated for another.

    Bicubic, as transformers' `interpolate_pos_encoding` with torch's `interpolate`; in float32.

    Args:
        table: [extra + rows * columns, features] for the grid `before`.
        before: rows and columns of patches that the table was learned for.
        after: rows and columns of patches that are needed.
        extra: leading rows of the table that belong to no patch (class, distillation); kept.

    Returns:
        [extra + rows * columns, features] for the grid `after`.
    """
    if before == after:
        return table
    grid = table[extra:].reshape(*before, -1).astype(jnp.float32)
    rows, columns = (cubic_weights(*sizes) for sizes in zip(before, after, strict=True))
    grid = jnp.einsum("yh,xw,hwf->yxf", rows, columns, grid, precision=jax.lax.Precision.HIGHEST)
    grid = grid.reshape(after[0] * after[1], -1).astype(table.dtype)
    return jnp.concatenate([table[:extra], grid])


def cubic_weights(before: int, after: int) -> np.ndarray:
    """How each of `after` points is mixed from `before` points along one axis.

    Cubic convolution (Keys 1981, eq. 4) with torch's a = -0.75 (`jax.image.resize` has -0.5), pixel
    centres at half-integers, the edge repeated outside.

    Returns:
        float32 [after, before].
    """
    a = -0.75
    centre = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((after, before))
    for neighbour in range(4):
        distance = np.abs(centre - (first + neighbour))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        index = np.clip(first + neighbour, 0, before - 1)
        np.add.at(weights, (np.arange(after), index), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)
