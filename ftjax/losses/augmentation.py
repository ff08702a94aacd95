"""Images changed at random where they are learned; each by its own key, whatever its row."""

import jax
import jax.numpy as jnp

# Of width to height, as torchvision's RandomResizedCrop.
LEAST_RATIO, MOST_RATIO = 3 / 4, 4 / 3


def random_resized_crop(pixels: jax.Array, keys: jax.Array, least_area: float) -> jax.Array:
    """A part of each image, as large as the whole (Szegedy et al. 2015, 1409.4842, section 6).

    Args:
        pixels: float [rows, height, width, channels].
        keys: a random key per row.
        least_area: the smallest share of the area; the largest is all of it.
    """

    def crop(image, key):
        size = jnp.asarray(image.shape[:2], jnp.float32)
        area_key, ratio_key, place_key = jax.random.split(key, 3)
        area = jax.random.uniform(area_key, minval=least_area, maxval=1.0)
        bounds = jnp.log(jnp.asarray([LEAST_RATIO, MOST_RATIO]))
        ratio = jnp.exp(jax.random.uniform(ratio_key, minval=bounds[0], maxval=bounds[1]))
        # What a ratio makes too high or too wide is cut.
        shares = jnp.minimum(jnp.sqrt(area * jnp.stack([1 / ratio, ratio])), 1.0)
        start = jax.random.uniform(place_key, (2,)) * (1 - shares) * size
        scale = 1 / shares
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), scale, -start * scale, method="linear", antialias=False
        )

    return jax.vmap(crop)(pixels, keys)


def horizontal_flip(pixels: jax.Array, keys: jax.Array) -> jax.Array:
    """Half of the images [rows, height, width, channels], mirrored."""
    flipped = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flipped[:, None, None, None], pixels[:, :, ::-1], pixels)


def mixup(pixels: jax.Array, others: jax.Array, shares: jax.Array) -> jax.Array:
    """Weighted means of images (Zhang et al. 2018, 1710.09412, eq. 1).

    Args:
        pixels: float [rows, height, width, channels].
        others: of the same shape.
        shares: float [rows], of the first.
    """
    shares = shares[:, None, None, None]
    return shares * pixels + (1 - shares) * others


def cutmix(
    pixels: jax.Array, others: jax.Array, shares: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Images with a rectangle of others (Yun et al. 2019, 1905.04899, eq. 1 and 2).

    Args:
        pixels: float [rows, height, width, channels].
        others: of the same shape.
        shares: float [rows], the area that is wanted of the first.
        keys: a random key per row, for the rectangle's centre.

    Returns:
        The images, and the shares that are left of the first, as the rectangle is cut at the edges.
    """
    height, width = pixels.shape[1:3]

    def inside(share, key):
        centre = jax.random.uniform(key, (2,))
        half = jnp.sqrt(1 - share) / 2
        rows, columns = ((jnp.arange(n) + 0.5) / n for n in (height, width))
        near = [jnp.abs(x - c) < half for x, c in zip((rows, columns), centre, strict=True)]
        return near[0][:, None] & near[1][None]

    masks = jax.vmap(inside)(shares, keys)
    left = 1 - jnp.mean(masks, axis=(1, 2))
    return jnp.where(masks[..., None], others, pixels), left
