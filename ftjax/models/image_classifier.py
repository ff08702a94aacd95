"""A family's own classifier of images, called with a batch of bytes."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.layers import Network


class ImageClassifier(nnx.Module):
    """Sorts images into classes.

    Attributes:
        backbone: a family's "image_classification" network, its head included.
        scale: what bytes are multiplied by.
        mean: of each channel, taken away behind that.
        deviation: of each channel, divided by at last.
        deterministic_backbone: as of `TextClassifier`.
    """

    def __init__(
        self, backbone: Network, scale: float, mean: Sequence[float], deviation: Sequence[float]
    ):
        self.backbone = backbone
        self.scale, self.mean, self.deviation = scale, tuple(mean), tuple(deviation)
        self.deterministic_backbone = False

    def features(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """What the head sees of each image, [batch, features].

        Args:
            batch: `pixel_values` [batch, height, width, 3], bytes or floats from 0 to 255.
            key: random key for dropout; None for evaluation.
        """
        key = None if self.deterministic_backbone else key
        pixels = batch["pixel_values"].astype(jnp.float32) * self.scale
        pixels = (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.deviation)
        return self.backbone.pool(self.backbone.backbone(pixels, key=key))

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, classes]; `batch` may have `features` computed before."""
        features = batch["features"] if "features" in batch else self.features(batch, key)
        return self.backbone.classifier(features).astype(jnp.float32)
