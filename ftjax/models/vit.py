"""ViT (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929) and DeiT (Touvron et al. 2021).

Reference implementations: transformers' `ViTModel` and `DeiTModel`.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.attention import attention
from ftjax.models.dropout import dropout, split_key
from ftjax.models.family import Family, with_num_labels
from ftjax.models.layers import (
    ACTIVATIONS,
    Activation,
    Compute,
    Output,
    apply_blocks,
    layer_norm,
    linear,
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
class ViTConfig:
    """The fields of config.json that ViT's computation uses, with transformers' defaults.

    `image_size` is the size that the positions were learned for; other sizes interpolate them.
    """

    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    intermediate_size: Width = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0
    layer_norm_eps: Epsilon = 1e-12
    image_size: Size = 224
    patch_size: Size = 16
    num_channels: Width = 3
    qkv_bias: bool = True
    pooler_output_size: Width | None = None
    pooler_act: Activation = "tanh"
    num_labels: Count = 2

    # The class token; DeiT has a second one, which learns from a teacher.
    extra_tokens: ClassVar[int] = 1

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )

    from_fields = staticmethod(with_num_labels)


@dataclasses.dataclass(frozen=True)
class DeiTConfig(ViTConfig):
    """DeiT: ViT with a distillation token."""

    extra_tokens: ClassVar[int] = 2


class ViTPatchEmbeddings(nnx.Module):
    """The projection of patches."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        self.projection = patch_projection(
            config.num_channels, config.hidden_size, config.patch_size, compute, rngs=rngs
        )


class ViTEmbeddings(nnx.Module):
    """Class (and distillation) token and patches, with their positions."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        rows, columns = patch_grid(config.image_size, config.patch_size)
        positions = (1, config.extra_tokens + rows * columns, size)
        normal = nnx.initializers.normal(0.02)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, size), compute.param_dtype))
        if config.extra_tokens == 2:
            self.distillation_token = nnx.Param(
                normal(rngs.params(), (1, 1, size), compute.param_dtype)
            )
        self.position_embeddings = nnx.Param(normal(rngs.params(), positions, compute.param_dtype))
        self.patch_embeddings = ViTPatchEmbeddings(config, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values, key):
        """[batch, height, width, channels] -> [batch, extra + patches, hidden]."""
        config = self.config
        patches = project_patches(self.patch_embeddings.projection, pixel_values)
        tokens = [self.cls_token[...]]
        if config.extra_tokens == 2:
            tokens.append(self.distillation_token[...])
        tokens = jnp.concatenate(tokens, axis=1).astype(patches.dtype)
        tokens = jnp.broadcast_to(tokens, (len(patches), *tokens.shape[1:]))
        positions = resize_positions(
            self.position_embeddings[0],
            patch_grid(config.image_size, config.patch_size),
            patch_grid(pixel_values.shape[1:3], config.patch_size),
            config.extra_tokens,
        )
        hidden = jnp.concatenate([tokens, patches], axis=1) + positions.astype(patches.dtype)
        return dropout(hidden, config.hidden_dropout_prob, key)


class ViTSelfAttention(nnx.Module):
    """Query, key and value projections and the attention between them."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.query = linear(size, size, compute, rngs=rngs, bias=config.qkv_bias)
        self.key = linear(size, size, compute, rngs=rngs, bias=config.qkv_bias)
        self.value = linear(size, size, compute, rngs=rngs, bias=config.qkv_bias)
        self.heads = config.num_attention_heads
        self.key_shape = (self.heads, size // self.heads)
        self.prefix = nnx.data(None)
        self.dropout_rate = config.attention_probs_dropout_prob

    def __call__(self, hidden, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        split = (*hidden.shape[:2], self.heads, hidden.shape[2] // self.heads)
        mixed = attention(
            self.query(hidden).reshape(split),
            self.key(hidden).reshape(split),
            self.value(hidden).reshape(split),
            prefix=self.prefix,
            dropout_rate=self.dropout_rate,
            dropout_key=key,
        )
        return mixed.reshape(hidden.shape)


class ViTDense(nnx.Module):
    """One dense layer; the published names have a module around each."""

    def __init__(self, inputs: int, outputs: int, compute: Compute, *, rngs: nnx.Rngs):
        self.dense = linear(inputs, outputs, compute, rngs=rngs)


class ViTAttention(nnx.Module):
    """Self-attention with its output projection."""

    def __init__(self, config, compute: Compute, *, rngs: nnx.Rngs):
        self.attention = ViTSelfAttention(config, compute, rngs=rngs)
        self.output = ViTDense(config.hidden_size, config.hidden_size, compute, rngs=rngs)

    def __call__(self, hidden, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        return self.output.dense(self.attention(hidden, key))


class ViTLayer(nnx.Module):
    """One pre-norm block."""

    def __init__(self, config: ViTConfig, compute: Compute, *, rngs: nnx.Rngs):
        size, epsilon = config.hidden_size, config.layer_norm_eps
        self.layernorm_before = layer_norm(size, epsilon, compute, rngs=rngs)
        self.attention = ViTAttention(config, compute, rngs=rngs)
        self.layernorm_after = layer_norm(size, epsilon, compute, rngs=rngs)
        self.intermediate = ViTDense(size, config.intermediate_size, compute, rngs=rngs)
        self.output = ViTDense(config.intermediate_size, size, compute, rngs=rngs)
        self.config = config

    def __call__(self, hidden, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        keys = split_key(key, 3)
        rate = self.config.hidden_dropout_prob
        mixed = self.attention(self.layernorm_before(hidden), keys[0])
        hidden = hidden + dropout(mixed, rate, keys[1])
        wide = self.intermediate.dense(self.layernorm_after(hidden))
        wide = self.output.dense(ACTIVATIONS[self.config.hidden_act](wide))
        return hidden + dropout(wide, rate, keys[2])


class ViTEncoder(nnx.Module):
    """The stack of blocks."""

    def __init__(self, block: type, config, compute: Compute, *, rngs: nnx.Rngs):
        self.layer = nnx.List(
            [block(config, compute, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )


class ViTModel(nnx.Module):
    """Embeddings, blocks, the last norm and, if the checkpoint has one, the pooler."""

    def __init__(
        self,
        config: ViTConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
        pooler: bool = False,
    ):
        size = config.hidden_size
        self.embeddings = ViTEmbeddings(config, compute, rngs=rngs)
        self.encoder = ViTEncoder(ViTLayer, config, compute, rngs=rngs)
        self.layernorm = layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
        self.pooler = (
            ViTDense(size, config.pooler_output_size or size, compute, rngs=rngs)
            if pooler
            else None
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
            `last_hidden_state` [batch, extra tokens + patches, hidden]; the class token is first.
        """
        embed_key, blocks_key = split_key(key, 2)
        hidden, states = apply_blocks(
            self.encoder.layer,
            self.embeddings(pixel_values, embed_key),
            lambda block, hidden, key: block(hidden, key),
            key=blocks_key,
            compute=self.compute,
        )
        hidden = self.layernorm(hidden)
        pooled = None
        if self.pooler is not None:
            pooled = ACTIVATIONS[self.config.pooler_act](self.pooler.dense(hidden[:, 0]))
        return Output(hidden, states, pooled)


class ViTClassifier(nnx.Module):
    """A linear layer on the class token."""

    def __init__(
        self,
        config: ViTConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = ViTModel(config, compute, rngs=rngs)
        self.classifier = linear(config.hidden_size, config.num_labels, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        output = self.backbone(pixel_values, key=key)
        return output._replace(logits=self.classifier(self.pool(output)))

    def pool(self, output: Output) -> jax.Array:
        """What the head sees of the backbone's output, [batch, hidden]."""
        return output.last_hidden_state[:, 0]


class DeiTClassifierWithTeacher(nnx.Module):
    """The mean of two linear layers, on the class token and on the distillation token."""

    def __init__(
        self,
        config: DeiTConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        size = config.hidden_size
        self.backbone = ViTModel(config, compute, rngs=rngs)
        self.cls_classifier = linear(size, config.num_labels, compute, rngs=rngs)
        self.distillation_classifier = linear(size, config.num_labels, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        output = self.backbone(pixel_values, key=key)
        first = self.cls_classifier(output.last_hidden_state[:, 0])
        second = self.distillation_classifier(output.last_hidden_state[:, 1])
        return output._replace(logits=(first + second) / 2)


FAMILY = Family(
    model_type="vit",
    config=ViTConfig,
    networks={
        "backbone": ViTModel,
        "pooled": functools.partial(ViTModel, pooler=True),
        "image_classification": ViTClassifier,
    },
    prefix="vit.",
    heads=(
        r"pooler\..*",
        r"(cls_|distillation_)?classifier\..*",
        # Of masked-image modelling.
        r"decoder\..*",
        r"embeddings\.mask_token",
    ),
    ignored_fields=frozenset(["encoder_stride", "tie_word_embeddings"]),
)
DEIT_FAMILY = dataclasses.replace(
    FAMILY,
    model_type="deit",
    config=DeiTConfig,
    networks={
        **FAMILY.networks,
        "image_classification_with_teacher": DeiTClassifierWithTeacher,
    },
    prefix="deit.",
)
