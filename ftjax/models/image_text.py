"""What pairs of an image and a text tower share: their output, each tower alone, a classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.layers import Compute, Output, linear


class ImageTextOutput(NamedTuple):
    """What a pair of towers returns. Under jit, what is not used costs nothing.

    Attributes:
        image_embeds: [images, projection], of length one.
        text_embeds: [texts, projection], of length one.
        logits_per_image: [images, texts], the scaled (and shifted) cosines.
        image: the image tower's Output.
        text: the text tower's Output.
    """

    image_embeds: jax.Array
    text_embeds: jax.Array
    logits_per_image: jax.Array
    image: Output
    text: Output


def unit_length(vectors: jax.Array) -> jax.Array:
    """[..., features], each divided by its Euclidean norm, in float32."""
    vectors = vectors.astype(jnp.float32)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


class VisionOfPair(nnx.Module):
    """The image tower alone, by the name it has in a checkpoint of both."""

    def __init__(
        self,
        tower: type,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.vision_model = tower(config.vision_config, compute, rngs=rngs)
        self.config = config.vision_config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """As the tower."""
        return self.vision_model(pixel_values, key=key)


class TextOfPair(nnx.Module):
    """The text tower alone, by the name it has in a checkpoint of both."""

    def __init__(
        self,
        tower: type,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.text_model = tower(config.text_config, compute, rngs=rngs)
        self.config = config.text_config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        position_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """As the tower."""
        return self.text_model(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            key=key,
        )


class ClassifierOfPair(nnx.Module):
    """A linear layer on the mean of the image tower's patches.

    Attributes:
        extra_tokens: how many of the tower's first tokens are no patches.
    """

    def __init__(
        self,
        tower: type,
        extra_tokens: int,
        config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        size = config.vision_config.hidden_size
        self.backbone = VisionOfPair(tower, config, compute, rngs=rngs)
        self.classifier = linear(size, config.num_labels, compute, rngs=rngs)
        self.extra_tokens = extra_tokens
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        output = self.backbone(pixel_values, key=key)
        return output._replace(logits=self.classifier(self.pool(output)))

    def pool(self, output: Output) -> jax.Array:
        """What the head sees of the backbone's output, [batch, hidden]."""
        return jnp.mean(output.last_hidden_state[:, self.extra_tokens :], axis=1)
