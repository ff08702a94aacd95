"""SigLIP (Zhai et al. 2023, https://arxiv.org/abs/2303.15343): CLIP's blocks, another objective.

Covers SigLIP 2 at a fixed resolution. Reference implementations: transformers' `SiglipModel`,
`SiglipTextModel`, `SiglipVisionModel` and `SiglipForImageClassification`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.attention import attention, make_attention_mask
from ftjax.models.clip import TOWER_FIELDS, ClipEncoder, ClipMLP, ClipTextEmbeddings
from ftjax.models.dropout import split_key
from ftjax.models.family import Family, with_num_labels
from ftjax.models.image_text import (
    ClassifierOfPair,
    ImageTextOutput,
    TextOfPair,
    VisionOfPair,
    unit_length,
)
from ftjax.models.layers import (
    Activation,
    Compute,
    Output,
    embedding,
    layer_norm,
    linear,
    matmul_2d,
    require_heads_divide,
)
from ftjax.models.schema import Count, Epsilon, Layers, Rate, Width
from ftjax.models.vision import (
    Size,
    patch_grid,
    patch_projection,
    project_patches,
    resize_positions,
)


@dataclasses.dataclass(frozen=True)
class SiglipTextConfig:
    """The fields of a text tower's config.json, with transformers' defaults."""

    vocab_size: Count = 32000
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    max_position_embeddings: Count = 64
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    attention_dropout: Rate = 0.0
    projection_size: Width | None = None

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig:
    """The fields of an image tower's config.json, with transformers' defaults."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    num_channels: Width = 3
    image_size: Size = 224
    patch_size: Size = 16
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    attention_dropout: Rate = 0.0
    vision_use_head: bool = True

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """The config.json of both towers together."""

    text_config: SiglipTextConfig = SiglipTextConfig()
    vision_config: SiglipVisionConfig = SiglipVisionConfig()
    num_labels: Count = 2

    from_fields = staticmethod(with_num_labels)


class SiglipTextModel(nnx.Module):
    """The text tower: every token sees every other, pooled at the last one."""

    def __init__(
        self,
        config: SiglipTextConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        size = config.hidden_size
        self.embeddings = ClipTextEmbeddings(config, compute, rngs=rngs)
        self.encoder = ClipEncoder(config, compute, rngs=rngs)
        self.final_layer_norm = layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
        self.head = linear(size, config.projection_size or size, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        position_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """Encodes a batch of token rows.

        Args:
            input_ids: int [batch, length], padded to `max_position_embeddings` as in pretraining.
            attention_mask: [batch, length], nonzero where a token is real; pretraining had none.
            position_ids: int [batch, length], 0, 1, 2, ... by default.
            inputs_embeds: [batch, length, hidden] in place of `input_ids`.
            key: random key for dropout; None for evaluation.

        Returns:
            `pooled` [batch, projection] is the last token, padding or not, projected.
        """
        hidden = self.embeddings(input_ids, position_ids, inputs_embeds)
        hidden, states = self.encoder(hidden, make_attention_mask(attention_mask), key)
        hidden = self.final_layer_norm(hidden)
        return Output(hidden, states, self.head(hidden[:, -1]))


class SiglipVisionEmbeddings(nnx.Module):
    """Patches with their positions."""

    def __init__(self, config: SiglipVisionConfig, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        rows, columns = patch_grid(config.image_size, config.patch_size)
        self.patch_embedding = patch_projection(
            config.num_channels, size, config.patch_size, compute, rngs=rngs
        )
        self.position_embedding = embedding(rows * columns, size, compute, rngs=rngs)
        self.config = config

    def __call__(self, pixel_values):
        """[batch, height, width, channels] -> [batch, patches, hidden]."""
        patches = project_patches(self.patch_embedding, pixel_values)
        positions = resize_positions(
            self.position_embedding.embedding[...],
            patch_grid(self.config.image_size, self.config.patch_size),
            patch_grid(pixel_values.shape[1:3], self.config.patch_size),
            extra=0,
        )
        return patches + positions.astype(patches.dtype)


class ProbeAttention(nnx.Module):
    """torch's MultiheadAttention by its published names: three projections in one matrix."""

    def __init__(self, config: SiglipVisionConfig, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        normal = nnx.initializers.normal(0.02)
        self.in_proj_weight = nnx.Param(
            normal(rngs.params(), (3 * size, size), compute.param_dtype)
        )
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * size, compute.param_dtype))
        self.out_proj = linear(size, size, compute, rngs=rngs)
        self.heads = config.num_attention_heads

    def __call__(self, probe, hidden):
        """[batch, 1, hidden], [batch, length, hidden] -> [batch, 1, hidden]."""
        weights = jnp.split(self.in_proj_weight[...].astype(hidden.dtype), 3)
        biases = jnp.split(self.in_proj_bias[...].astype(hidden.dtype), 3)
        projected = [
            (matmul_2d(states, weight.T) + bias).reshape(*states.shape[:2], self.heads, -1)
            for states, weight, bias in zip((probe, hidden, hidden), weights, biases, strict=True)
        ]
        return self.out_proj(attention(*projected).reshape(probe.shape))


class SiglipPoolingHead(nnx.Module):
    """A learned probe attends to the patches (Zhai et al. 2022, https://arxiv.org/abs/2106.04560)."""

    def __init__(self, config: SiglipVisionConfig, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.probe = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (1, 1, size), compute.param_dtype)
        )
        self.attention = ProbeAttention(config, compute, rngs=rngs)
        self.layernorm = layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
        self.mlp = ClipMLP(config, compute, rngs=rngs)

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, hidden]."""
        probe = self.probe[...].astype(hidden.dtype)
        probe = jnp.broadcast_to(probe, (len(hidden), *probe.shape[1:]))
        pooled = self.attention(probe, hidden)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class SiglipVisionModel(nnx.Module):
    """The image tower."""

    def __init__(
        self,
        config: SiglipVisionConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        size = config.hidden_size
        self.embeddings = SiglipVisionEmbeddings(config, compute, rngs=rngs)
        self.encoder = ClipEncoder(config, compute, rngs=rngs)
        self.post_layernorm = layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
        self.head = (
            SiglipPoolingHead(config, compute, rngs=rngs) if config.vision_use_head else None
        )
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """Encodes a batch of images of one size.

        Args:
            pixel_values: float [batch, height, width, channels], normalised as the checkpoint's
                image processor does. Any size of at least one patch.
            key: random key for dropout; None for evaluation.

        Returns:
            `last_hidden_state` [batch, patches, hidden]; `pooled` [batch, hidden] where the tower
            has a pooling head.
        """
        hidden, states = self.encoder(self.embeddings(pixel_values), None, key)
        hidden = self.post_layernorm(hidden)
        return Output(hidden, states, None if self.head is None else self.head(hidden))


class SiglipModel(nnx.Module):
    """Both towers; the similarity is scaled and shifted."""

    def __init__(
        self,
        config: SiglipConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.text_model = SiglipTextModel(config.text_config, compute, rngs=rngs)
        self.vision_model = SiglipVisionModel(config.vision_config, compute, rngs=rngs)
        # Section 3.2 of the paper: t' = log 10 and b = -10.
        self.logit_scale = nnx.Param(jnp.log(jnp.full(1, 10, compute.param_dtype)))
        self.logit_bias = nnx.Param(jnp.full(1, -10, compute.param_dtype))
        self.config = config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        pixel_values: jax.Array,
        key: jax.Array | None = None,
    ) -> ImageTextOutput:
        """Compares every image with every text; arguments as in the towers.

        Args:
            input_ids: int [texts, length].
            attention_mask: [texts, length], nonzero where a token is real.
            pixel_values: float [images, height, width, channels].
            key: random key for dropout; None for evaluation.
        """
        text_key, image_key = split_key(key, 2)
        text = self.text_model(input_ids, attention_mask, key=text_key)
        image = self.vision_model(pixel_values, key=image_key)
        text_embeds, image_embeds = unit_length(text.pooled), unit_length(image.pooled)
        logits = (
            image_embeds @ text_embeds.T * jnp.exp(self.logit_scale[...]) + self.logit_bias[...]
        )
        return ImageTextOutput(image_embeds, text_embeds, logits, image, text)


TEXT_FAMILY = Family(
    model_type="siglip_text_model",
    config=SiglipTextConfig,
    networks={"backbone": SiglipTextModel},
    prefix="text_model.",
    buffers=(r"embeddings\.position_ids",),
    ignored_fields=TOWER_FIELDS,
)
VISION_FAMILY = Family(
    model_type="siglip_vision_model",
    config=SiglipVisionConfig,
    networks={"backbone": SiglipVisionModel},
    prefix="vision_model.",
    buffers=(r"embeddings\.position_ids",),
    ignored_fields=TOWER_FIELDS,
)
FAMILY = Family(
    model_type="siglip",
    config=SiglipConfig,
    networks={
        "backbone": functools.partial(VisionOfPair, SiglipVisionModel),
        "text": functools.partial(TextOfPair, SiglipTextModel),
        "image_text": SiglipModel,
        "image_classification": functools.partial(ClassifierOfPair, SiglipVisionModel, 0),
    },
    heads=(
        r"text_model\..*",
        r"vision_model\..*",
        r"logit_(scale|bias)",
        r"classifier\..*",
    ),
    buffers=(r"(text|vision)_model\.embeddings\.position_ids",),
    ignored_fields=frozenset(["tie_word_embeddings"]),
    parts={"text_config": TEXT_FAMILY, "vision_config": VISION_FAMILY},
)
