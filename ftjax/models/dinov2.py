"""DINOv2 (Oquab et al. 2024, https://arxiv.org/abs/2304.07193): ViT with layer scale.

Reference implementation: transformers' `Dinov2Model`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.dropout import dropout, split_key
from ftjax.models.family import Family, with_num_labels
from ftjax.models.layers import (
    ACTIVATIONS,
    Activation,
    Compute,
    Constant,
    Output,
    apply_blocks,
    layer_norm,
    linear,
    require_heads_divide,
)
from ftjax.models.schema import Count, Epsilon, Layers, Positive, Rate, Width
from ftjax.models.vision import Size
from ftjax.models.vit import ViTAttention, ViTEmbeddings, ViTEncoder


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """The fields of config.json that DINOv2's computation uses, with transformers' defaults.

    `image_size` is the size that the positions were learned for; other sizes interpolate them.
    `layerscale_value` is where layer scales begin in a network that is not loaded.
    """

    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    mlp_ratio: Positive = 4
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0
    layer_norm_eps: Epsilon = 1e-6
    image_size: Size = 224
    patch_size: Size = 14
    num_channels: Width = 3
    qkv_bias: bool = True
    layerscale_value: Positive = 1.0
    drop_path_rate: Rate = 0.0
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True
    num_labels: Count = 2

    extra_tokens: ClassVar[int] = 1

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )

    from_fields = staticmethod(with_num_labels)


class Dinov2Embeddings(ViTEmbeddings):
    """ViT's, with the token that stands for masked patches in pretraining, here only kept."""

    def __init__(self, config: Dinov2Config, compute: Compute, *, rngs: nnx.Rngs):
        super().__init__(config, compute, rngs=rngs)
        if config.use_mask_token:
            self.mask_token = Constant(jnp.zeros((1, config.hidden_size), compute.param_dtype))


class Dinov2LayerScale(nnx.Module):
    """A learned factor per feature (Touvron et al. 2021, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, config: Dinov2Config, compute: Compute):
        self.lambda1 = nnx.Param(
            jnp.full(config.hidden_size, config.layerscale_value, compute.param_dtype)
        )

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        return hidden * self.lambda1[...].astype(hidden.dtype)


class Dinov2MLP(nnx.Module):
    """The plain feed-forward layer."""

    def __init__(self, config: Dinov2Config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        width = int(size * config.mlp_ratio)
        self.fc1 = linear(size, width, compute, rngs=rngs)
        self.fc2 = linear(width, size, compute, rngs=rngs)
        self.activation = config.hidden_act

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(hidden)))


class Dinov2SwiGLU(nnx.Module):
    """The gated feed-forward layer (Shazeer 2020) of the giant size."""

    def __init__(self, config: Dinov2Config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        # Two thirds of the plain layer's width, rounded up to a multiple of 8.
        width = (int(int(size * config.mlp_ratio) * 2 / 3) + 7) // 8 * 8
        self.weights_in = linear(size, 2 * width, compute, rngs=rngs)
        self.weights_out = linear(width, size, compute, rngs=rngs)

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        gate, value = jnp.split(self.weights_in(hidden), 2, axis=-1)
        return self.weights_out(jax.nn.silu(gate) * value)


class Dinov2Layer(nnx.Module):
    """One pre-norm block."""

    def __init__(self, config: Dinov2Config, compute: Compute, *, rngs: nnx.Rngs):
        size, epsilon = config.hidden_size, config.layer_norm_eps
        feed_forward = Dinov2SwiGLU if config.use_swiglu_ffn else Dinov2MLP
        self.norm1 = layer_norm(size, epsilon, compute, rngs=rngs)
        self.attention = ViTAttention(config, compute, rngs=rngs)
        self.layer_scale1 = Dinov2LayerScale(config, compute)
        self.norm2 = layer_norm(size, epsilon, compute, rngs=rngs)
        self.mlp = feed_forward(config, compute, rngs=rngs)
        self.layer_scale2 = Dinov2LayerScale(config, compute)
        self.drop_path_rate = config.drop_path_rate

    def __call__(self, hidden, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        keys = split_key(key, 3)
        mixed = self.layer_scale1(self.attention(self.norm1(hidden), keys[0]))
        hidden = hidden + drop_path(mixed, self.drop_path_rate, keys[1])
        wide = self.layer_scale2(self.mlp(self.norm2(hidden)))
        return hidden + drop_path(wide, self.drop_path_rate, keys[2])


def drop_path(branch: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Leaves out the whole branch for some samples (Huang et al. 2016, stochastic depth).

    Args:
        branch: [batch, length, hidden], what is added to the residual.
        rate: probability of leaving it out; the rest is scaled by 1 / (1 - rate).
        key: random key; None for evaluation.
    """
    return branch * dropout(jnp.ones((len(branch), 1, 1), branch.dtype), rate, key)


class Dinov2Model(nnx.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(
        self,
        config: Dinov2Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.embeddings = Dinov2Embeddings(config, compute, rngs=rngs)
        self.encoder = ViTEncoder(Dinov2Layer, config, compute, rngs=rngs)
        self.layernorm = layer_norm(config.hidden_size, config.layer_norm_eps, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """Encodes a batch of images of one size.

        Args:
            pixel_values: float [batch, height, width, channels], normalised as the checkpoint's
                image processor does. Any size of at least one patch.
            key: random key for dropout and dropped paths; None for evaluation.

        Returns:
            `last_hidden_state` [batch, 1 + patches, hidden]; `pooled` is its class token.
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
        return Output(hidden, states, hidden[:, 0])


class Dinov2Classifier(nnx.Module):
    """A linear layer on the class token beside the mean of the patches."""

    def __init__(
        self,
        config: Dinov2Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = Dinov2Model(config, compute, rngs=rngs)
        self.classifier = linear(2 * config.hidden_size, config.num_labels, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array, *, key: jax.Array | None = None) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        output = self.backbone(pixel_values, key=key)
        return output._replace(logits=self.classifier(self.pool(output)))

    def pool(self, output: Output) -> jax.Array:
        """What the head sees of the backbone's output, [batch, 2 * hidden]."""
        patches = jnp.mean(output.last_hidden_state[:, 1:], axis=1)
        return jnp.concatenate([output.last_hidden_state[:, 0], patches], axis=1)


FAMILY = Family(
    model_type="dinov2",
    config=Dinov2Config,
    networks={"backbone": Dinov2Model, "image_classification": Dinov2Classifier},
    prefix="dinov2.",
    heads=(r"classifier\..*",),
    zeros=(r"(dinov2\.)?embeddings\.mask_token",),
    # How transformers' Dinov2Backbone hands out the hidden states, which are all in Output.
    ignored_fields=frozenset(
        [
            "_out_features",
            "_out_indices",
            "apply_layernorm",
            "out_features",
            "out_indices",
            "reshape_hidden_states",
            "stage_names",
            "tie_word_embeddings",
        ]
    ),
)
