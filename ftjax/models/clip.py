"""CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020): two towers and their similarity.

Reference implementations: transformers' `CLIPModel`, `CLIPTextModel`, `CLIPVisionModel` and
`CLIPForImageClassification`.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.attention import attention, make_attention_mask
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
    ACTIVATIONS,
    Activation,
    Compute,
    Output,
    apply_blocks,
    embedding,
    layer_norm,
    linear,
    require_heads_divide,
    require_positions,
)
from ftjax.models.schema import Bounds, Count, Epsilon, Layers, Rate, Token, Width
from ftjax.models.vision import (
    Size,
    patch_grid,
    patch_projection,
    project_patches,
    resize_positions,
)


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """The fields of a text tower's config.json, with transformers' defaults.

    `eos_token_id` is one number: the text is pooled at its place.
    """

    vocab_size: Count = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    projection_dim: Width = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 8
    max_position_embeddings: Count = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_dropout: Rate = 0.0
    eos_token_id: Token = 49407

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
    """The fields of an image tower's config.json, with transformers' defaults."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    projection_dim: Width = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    num_channels: Width = 3
    image_size: Size = 224
    patch_size: Size = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_dropout: Rate = 0.0

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The config.json of both towers together; `logit_scale_init_value` is for a new network."""

    text_config: ClipTextConfig = ClipTextConfig()
    vision_config: ClipVisionConfig = ClipVisionConfig()
    projection_dim: Width = 512
    logit_scale_init_value: Annotated[float, Bounds(-100, 100)] = 2.6592
    num_labels: Count = 2

    @staticmethod
    def from_fields(fields: dict) -> dict:
        """Finds the towers' configs, which transformers 4 once wrote as `text_config_dict`."""
        fields = with_num_labels(fields)
        for name in ("text_config", "vision_config"):
            older = fields.pop(f"{name}_dict", None)
            fields[name] = fields.get(name) if older is None else older
        return fields


class ClipAttention(nnx.Module):
    """Attention with its four projections."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.q_proj = linear(size, size, compute, rngs=rngs)
        self.k_proj = linear(size, size, compute, rngs=rngs)
        self.v_proj = linear(size, size, compute, rngs=rngs)
        self.out_proj = linear(size, size, compute, rngs=rngs)
        self.heads = config.num_attention_heads
        self.key_shape = (self.heads, size // self.heads)
        self.prefix = nnx.data(None)
        self.dropout_rate = config.attention_dropout

    def __call__(self, hidden, mask, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        split = (*hidden.shape[:2], self.heads, hidden.shape[2] // self.heads)
        mixed = attention(
            self.q_proj(hidden).reshape(split),
            self.k_proj(hidden).reshape(split),
            self.v_proj(hidden).reshape(split),
            prefix=self.prefix,
            mask=mask,
            dropout_rate=self.dropout_rate,
            dropout_key=key,
        )
        return self.out_proj(mixed.reshape(hidden.shape))


class ClipMLP(nnx.Module):
    """The feed-forward layer."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        self.fc1 = linear(config.hidden_size, config.intermediate_size, compute, rngs=rngs)
        self.fc2 = linear(config.intermediate_size, config.hidden_size, compute, rngs=rngs)
        self.activation = config.hidden_act

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(hidden)))


class ClipLayer(nnx.Module):
    """One pre-norm block."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        size, epsilon = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = layer_norm(size, epsilon, compute, rngs=rngs)
        self.self_attn = ClipAttention(config, compute, rngs=rngs)
        self.layer_norm2 = layer_norm(size, epsilon, compute, rngs=rngs)
        self.mlp = ClipMLP(config, compute, rngs=rngs)

    def __call__(self, hidden, mask, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), mask, key)
        return hidden + self.mlp(self.layer_norm2(hidden))


class ClipEncoder(nnx.Module):
    """The stack of blocks."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [ClipLayer(config, compute, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.compute = compute

    def __call__(self, hidden, mask, key):
        """[batch, length, hidden] -> the same after the blocks, and all states on the way."""
        return apply_blocks(
            self.layers,
            hidden,
            lambda block, hidden, key: block(hidden, mask, key),
            key=key,
            compute=self.compute,
        )


class ClipTextEmbeddings(nnx.Module):
    """Tokens and learned positions, added."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.token_embedding = embedding(config.vocab_size, size, compute, rngs=rngs)
        self.position_embedding = embedding(
            config.max_position_embeddings, size, compute, rngs=rngs
        )

    def __call__(self, input_ids, position_ids, inputs_embeds):
        """Int [batch, length], or embeddings in its place -> [batch, length, hidden].

        Raises:
            ValueError: for a text longer than the positions, or position ids beyond them.
        """
        hidden = self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        length, most = hidden.shape[1], self.position_embedding.num_embeddings
        require_positions(length, most, position_ids)
        if position_ids is None:
            position_ids = jnp.arange(length)[None]
        return hidden + self.position_embedding(position_ids)


class ClipTextModel(nnx.Module):
    """The text tower: causal, pooled at the end-of-text token."""

    def __init__(
        self,
        config: ClipTextConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        size = config.hidden_size
        self.embeddings = ClipTextEmbeddings(config, compute, rngs=rngs)
        self.encoder = ClipEncoder(config, compute, rngs=rngs)
        self.final_layer_norm = layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
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
            input_ids: int [batch, length], each with an end-of-text token.
            attention_mask: [batch, length], nonzero where a token is real.
            position_ids: int [batch, length], 0, 1, 2, ... by default.
            inputs_embeds: [batch, length, hidden] in place of the tokens' embeddings; `input_ids`,
                if given, still say where the text ends.
            key: random key for dropout; None for evaluation.

        Returns:
            `pooled` [batch, hidden] is the last hidden state at the first end-of-text token; None
            without `input_ids`.
        """
        hidden = self.embeddings(input_ids, position_ids, inputs_embeds)
        mask = make_attention_mask(attention_mask, causal=True, length=hidden.shape[1])
        hidden, states = self.encoder(hidden, mask, key)
        hidden = self.final_layer_norm(hidden)
        if input_ids is None:
            return Output(hidden, states)
        # Older configs say 2, which is no end of text in CLIP's vocabulary; its real one is the
        # highest number (transformers' pull request 24773).
        end = self.config.eos_token_id
        place = jnp.argmax(input_ids if end == 2 else input_ids == end, axis=1)
        return Output(hidden, states, hidden[jnp.arange(len(hidden)), place])


class ClipVisionEmbeddings(nnx.Module):
    """Class token and patches with their positions."""

    def __init__(self, config: ClipVisionConfig, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        rows, columns = patch_grid(config.image_size, config.patch_size)
        self.class_embedding = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (size,), compute.param_dtype)
        )
        self.patch_embedding = patch_projection(
            config.num_channels, size, config.patch_size, compute, rngs=rngs, bias=False
        )
        self.position_embedding = embedding(1 + rows * columns, size, compute, rngs=rngs)
        self.config = config

    def __call__(self, pixel_values):
        """[batch, height, width, channels] -> [batch, 1 + patches, hidden]."""
        patches = project_patches(self.patch_embedding, pixel_values)
        token = self.class_embedding[...].astype(patches.dtype)
        token = jnp.broadcast_to(token, (len(patches), 1, len(token)))
        positions = resize_positions(
            self.position_embedding.embedding[...],
            patch_grid(self.config.image_size, self.config.patch_size),
            patch_grid(pixel_values.shape[1:3], self.config.patch_size),
            extra=1,
        )
        return jnp.concatenate([token, patches], axis=1) + positions.astype(patches.dtype)


class ClipVisionModel(nnx.Module):
    """The image tower."""

    def __init__(
        self,
        config: ClipVisionConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        size, epsilon = config.hidden_size, config.layer_norm_eps
        self.embeddings = ClipVisionEmbeddings(config, compute, rngs=rngs)
        # As published.
        self.pre_layrnorm = layer_norm(size, epsilon, compute, rngs=rngs)
        self.encoder = ClipEncoder(config, compute, rngs=rngs)
        self.post_layernorm = layer_norm(size, epsilon, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """Encodes a batch of images of one size.

        Args:
            pixel_values: float [batch, height, width, channels], normalised as the checkpoint's
                image processor does. Any size of at least one patch.
            key: random key for dropout; None for evaluation.

        Returns:
            `last_hidden_state` [batch, 1 + patches, hidden], not normalised; `pooled` [batch,
            hidden] is its class token, normalised.
        """
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        hidden, states = self.encoder(hidden, None, key)
        return Output(hidden, states, self.post_layernorm(hidden[:, 0]))


class ClipModel(nnx.Module):
    """Both towers, projected into one space."""

    def __init__(
        self,
        config: ClipConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        text, vision, shared = config.text_config, config.vision_config, config.projection_dim
        self.text_model = ClipTextModel(text, compute, rngs=rngs)
        self.vision_model = ClipVisionModel(vision, compute, rngs=rngs)
        self.text_projection = linear(text.hidden_size, shared, compute, rngs=rngs, bias=False)
        self.visual_projection = linear(vision.hidden_size, shared, compute, rngs=rngs, bias=False)
        self.logit_scale = nnx.Param(
            jnp.asarray(config.logit_scale_init_value, compute.param_dtype)
        )
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
        text_embeds = unit_length(self.text_projection(text.pooled))
        image_embeds = unit_length(self.visual_projection(image.pooled))
        logits = image_embeds @ text_embeds.T * jnp.exp(self.logit_scale[...])
        return ImageTextOutput(image_embeds, text_embeds, logits, image, text)


# Older transformers wrote a `dropout` that nothing reads.
TOWER_FIELDS = frozenset(["dropout", "tie_word_embeddings"])
TEXT_FAMILY = Family(
    model_type="clip_text_model",
    config=ClipTextConfig,
    networks={"backbone": ClipTextModel},
    prefix="text_model.",
    heads=(r"text_projection\..*",),
    buffers=(r"embeddings\.position_ids",),
    ignored_fields=TOWER_FIELDS,
)
VISION_FAMILY = Family(
    model_type="clip_vision_model",
    config=ClipVisionConfig,
    networks={"backbone": ClipVisionModel},
    prefix="vision_model.",
    heads=(r"visual_projection\..*",),
    buffers=(r"embeddings\.position_ids",),
    ignored_fields=TOWER_FIELDS,
)
FAMILY = Family(
    model_type="clip",
    config=ClipConfig,
    networks={
        "backbone": functools.partial(VisionOfPair, ClipVisionModel),
        "text": functools.partial(TextOfPair, ClipTextModel),
        "image_text": ClipModel,
        "image_classification": functools.partial(ClassifierOfPair, ClipVisionModel, 1),
    },
    heads=(
        r"text_model\..*",
        r"vision_model\..*",
        r"(text|visual)_projection\..*",
        r"logit_scale",
        r"classifier\..*",
    ),
    buffers=(r"(text|vision)_model\.embeddings\.position_ids",),
    ignored_fields=frozenset(["tie_word_embeddings"]),
    parts={"text_config": TEXT_FAMILY, "vision_config": VISION_FAMILY},
)
