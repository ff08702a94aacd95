"""Images changed at random: what each change is, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.losses.augmentation import cutmix, horizontal_flip, mixup, random_resized_crop


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture
def pixels():
    return jnp.asarray(np.random.default_rng(0).uniform(0, 255, (40, 12, 16, 3)), jnp.float32)


def test_half_of_the_images_are_mirrored(pixels):
    found = horizontal_flip(pixels, keys_of(40))
    mirrored = [bool((a == b[:, ::-1]).all()) for a, b in zip(found, pixels, strict=True)]
    same = [bool((a == b).all()) for a, b in zip(found, pixels, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 32


def test_a_crop_is_a_part_of_the_image_and_as_large():
    """Of an image that rises evenly, the crop rises evenly, by as much less as it is smaller."""
    rows, columns = jnp.meshgrid(jnp.arange(24.0), jnp.arange(24.0), indexing="ij")
    image = jnp.stack([rows, columns, jnp.ones_like(rows)], axis=-1)
    found = np.asarray(random_resized_crop(jnp.stack([image] * 30), keys_of(30), 0.3))
    areas = []
    for crop in found:
        inside = crop[3:-3, 3:-3]
        down, across = (np.diff(inside[..., 0], axis=0), np.diff(inside[..., 1], axis=1))
        assert np.ptp(down) < 1e-3
        assert np.ptp(across) < 1e-3
        areas.append(float(down.mean() * across.mean()))
        assert inside[..., 0].min() >= -0.5
        assert inside[..., 0].max() <= 23.5
        np.testing.assert_allclose(inside[..., 2], 1, atol=1e-5)
    assert 0.25 < min(areas) < 0.6
    assert 0.6 < max(areas) <= 1.01


def test_mixup_is_the_weighted_mean(pixels):
    shares = jnp.linspace(0, 1, 40)
    found = np.asarray(mixup(pixels, pixels[::-1], shares))
    for row, share in enumerate(np.asarray(shares)):
        expected = share * np.asarray(pixels[row]) + (1 - share) * np.asarray(pixels[39 - row])
        np.testing.assert_allclose(found[row], expected, atol=1e-3)


def test_cutmix_puts_a_rectangle_of_another_image(pixels):
    others = pixels + 1000
    shares = jnp.linspace(0.05, 0.95, 40)
    found, left = (np.asarray(x) for x in cutmix(pixels, others, shares, keys_of(40)))
    for row in range(40):
        mask = (found[row] > 500).all(-1)
        assert (mask == (found[row] > 500).any(-1)).all()
        assert left[row] == pytest.approx(1 - mask.mean(), abs=1e-6)
        # Cut at the edges, it may be smaller than wanted, and is a rectangle.
        assert left[row] >= float(shares[row]) - 0.15
        places = np.argwhere(mask)
        if len(places):
            (top, start), (bottom, end) = places.min(0), places.max(0)
            assert mask[top : bottom + 1, start : end + 1].all()
            assert mask.sum() == (bottom - top + 1) * (end - start + 1)


def test_each_row_by_its_own_key(pixels):
    """Whatever stands beside it."""
    few = random_resized_crop(pixels[:3], keys_of(40)[:3], 0.3)
    np.testing.assert_array_equal(few, random_resized_crop(pixels, keys_of(40), 0.3)[:3])
