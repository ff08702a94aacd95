"""Gemma (https://arxiv.org/abs/2403.08295), Gemma 2 (2408.00118), Gemma 3's text (2503.19786).

Reference implementations: transformers' `GemmaForCausalLM`, `Gemma2ForCausalLM` and
`Gemma3ForCausalLM`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.cache import LayerCache
from ftjax.models.decoder import (
    DecoderConfig,
    DecoderLayer,
    GatedMLP,
    LayerTypesConfig,
    SelfAttention,
    decoder_fields,
    llama_like_family,
)
from ftjax.models.decoder_stack import Context
from ftjax.models.layers import Activation, Compute, Network, require
from ftjax.models.rotary import Rotary, make_rotary
from ftjax.models.schema import Count, Layers, Positive, Token, Width, as_object


@dataclasses.dataclass(frozen=True)
class GemmaConfig(DecoderConfig):
    """The fields of config.json that Gemma's computation uses, with transformers' defaults."""

    vocab_size: Count = 256000
    hidden_size: Width = 3072
    intermediate_size: Width = 24576
    num_hidden_layers: Layers = 28
    num_attention_heads: Width = 16
    num_key_value_heads: Width = 16
    head_dim: Width = 256
    hidden_act: Activation = "gelu_pytorch_tanh"
    max_position_embeddings: Count = 8192
    tie_word_embeddings: bool = True
    pad_token_id: Token | None = 0
    attention_bias: bool = False

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Rewrites older spellings; "gelu" has always meant the tanh approximation here.

        Raises:
            ValueError: bidirectional attention, or rope parameters that are not implemented.
        """
        bidirectional = fields.pop("use_bidirectional_attention", None)
        require("use_bidirectional_attention", bidirectional, (None, False))
        if fields.get("hidden_act") == "gelu":
            fields["hidden_act"] = "gelu_pytorch_tanh"
        activation = fields.get("hidden_act", cls.hidden_act)
        overriding = fields.pop("hidden_activation", None)
        require("hidden_activation", overriding, (None, activation))
        return super().from_fields(fields)

    @property
    def embedding_scale(self) -> float:
        """Embeddings are brought to the size of the hidden states."""
        return self.hidden_size**0.5


@dataclasses.dataclass(frozen=True)
class Gemma2Config(LayerTypesConfig):
    """The fields of config.json that Gemma 2's computation uses, with transformers' defaults.

    `hidden_act` has the name `hidden_activation` there. Without `layer_types`, every second layer
    has full attention.
    """

    vocab_size: Count = 256000
    hidden_size: Width = 2304
    intermediate_size: Width = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Width = 8
    num_key_value_heads: Width = 4
    head_dim: Width = 256
    hidden_act: Activation = "gelu_pytorch_tanh"
    max_position_embeddings: Count = 8192
    tie_word_embeddings: bool = True
    pad_token_id: Token | None = 0
    attention_bias: bool = False
    query_pre_attn_scalar: Positive = 256
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Rewrites older spellings.

        Raises:
            ValueError: bidirectional attention, or rope parameters that are not implemented.
        """
        bidirectional = fields.pop("use_bidirectional_attention", None)
        require("use_bidirectional_attention", bidirectional, (None, False))
        return super().from_fields(_with_hidden_act(fields))

    def default_layer_types(self) -> tuple[str, ...]:
        """Full attention in every second layer."""
        return _full_attention_in_every(2, self.num_hidden_layers)

    @property
    def attention_scale(self) -> float:
        """What the attention scores are multiplied by."""
        return self.query_pre_attn_scalar**-0.5

    @property
    def embedding_scale(self) -> float:
        """Embeddings are brought to the size of the hidden states."""
        return self.hidden_size**0.5

    @property
    def logit_soft_cap(self) -> float | None:
        """Logits become soft_cap * tanh(logits / soft_cap)."""
        return self.final_logit_softcapping


@dataclasses.dataclass(frozen=True)
class Gemma3TextConfig(Gemma2Config):
    """The fields of config.json that Gemma 3's computation uses, with transformers' defaults.

    `rope_parameters` is that of the layers with full attention, `local_rope_parameters` that of the
    others. Without `layer_types`, every `sliding_window_pattern`-th layer has full attention.
    """

    vocab_size: Count = 262208
    max_position_embeddings: Count = 131072
    attn_logit_softcapping: None = None
    final_logit_softcapping: Positive | None = None
    use_bidirectional_attention: bool | None = False
    sliding_window_pattern: Width = 6
    rope_parameters: Rotary = dataclasses.field(default_factory=lambda: Rotary(rope_theta=1e6))
    local_rope_parameters: Rotary = dataclasses.field(default_factory=Rotary)

    def __post_init__(self):
        # The reference holds this field and does not apply it.
        require("attn_logit_softcapping", self.attn_logit_softcapping, (None,))
        super().__post_init__()

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Rewrites older spellings, in which `rope_theta` and `rope_local_base_freq` stand alone.

        Raises:
            ValueError: rope parameters that are not implemented.
        """
        fields = _with_hidden_act(fields)
        given = as_object("rope_parameters", fields.pop("rope_parameters", None))
        rotaries = {
            "full_attention": {"rope_theta": fields.pop("rope_theta", 1e6)},
            "sliding_attention": {"rope_theta": fields.pop("rope_local_base_freq", 1e4)},
        }
        for name in given:
            require("rope_parameters", name, tuple(rotaries))
            rotaries[name] |= as_object(f"rope_parameters.{name}", given[name])
        rotaries["full_attention"] |= as_object("rope_scaling", fields.pop("rope_scaling", None))
        length = fields.get("max_position_embeddings", cls.max_position_embeddings)
        full, local = (
            make_rotary(parameters, max_position_embeddings=length)
            for parameters in rotaries.values()
        )
        for rotary in (full, local):
            require("partial_rotary_factor", rotary.partial_rotary_factor, (1.0,))
        rotaries = {"rope_parameters": full, "local_rope_parameters": local}
        return decoder_fields(fields | rotaries)

    def default_layer_types(self) -> tuple[str, ...]:
        """Full attention in every `sliding_window_pattern`-th layer."""
        return _full_attention_in_every(self.sliding_window_pattern, self.num_hidden_layers)

    def rotary(self, layer: int) -> Rotary:
        """The layer's rotary embedding."""
        is_full = self.layer_types[layer] == "full_attention"
        return self.rope_parameters if is_full else self.local_rope_parameters

    def window(self, layer: int) -> int | None:
        """The layer's window; if attention is bidirectional, the half of it on either side."""
        window = super().window(layer)
        return window // 2 if window is not None and self.use_bidirectional_attention else window

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only itself and what comes before it."""
        return not self.use_bidirectional_attention


def _with_hidden_act(fields: dict) -> dict:
    """Gemma 2 and 3 say `hidden_activation`, and never used a `hidden_act` beside it."""
    fields.pop("hidden_act", None)
    name = fields.pop("hidden_activation", None)
    return fields if name is None else fields | {"hidden_act": name}


def _full_attention_in_every(period: int, layers: int) -> tuple[str, ...]:
    return tuple(
        "sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)
    )


class ZeroCenteredRMSNorm(nnx.Module):
    """RMSNorm that stores its scale as the difference from one; all in float32."""

    def __init__(self, features: int, epsilon: float, compute: Compute, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.zeros((features,), compute.param_dtype))
        self.epsilon = epsilon
        self.dtype = compute.dtype

    def __call__(self, hidden):
        """[..., features] -> [..., features]."""
        hidden = hidden.astype(jnp.float32)
        hidden = hidden * jax.lax.rsqrt(jnp.mean(hidden**2, axis=-1, keepdims=True) + self.epsilon)
        return (hidden * (1.0 + self.scale[...].astype(jnp.float32))).astype(self.dtype)


class SandwichLayer(nnx.Module):
    """One block with a norm before and after each of its two parts."""

    def __init__(
        self,
        config: Gemma2Config,
        compute: Compute,
        self_attn: Network,
        mlp: Network,
        *,
        rngs: nnx.Rngs,
    ):
        def norm() -> ZeroCenteredRMSNorm:
            return ZeroCenteredRMSNorm(config.hidden_size, config.rms_norm_eps, compute, rngs=rngs)

        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.post_feedforward_layernorm = norm()

    def __call__(self, hidden, context: Context, key, cache: LayerCache | None = None):
        """[batch, length, hidden] -> ([batch, length, hidden], the cache with these tokens)."""
        mixed, cache = self.self_attn(self.input_layernorm(hidden), context, key, cache)
        hidden = hidden + self.post_attention_layernorm(mixed)
        wide = self.mlp(self.pre_feedforward_layernorm(hidden))
        return hidden + self.post_feedforward_layernorm(wide), cache


def gemma_layer(config: GemmaConfig, layer: int, compute, *, rngs) -> DecoderLayer:
    """A block of Gemma."""
    bias = config.attention_bias
    return DecoderLayer(
        config,
        compute,
        SelfAttention(config, layer, compute, rngs=rngs, qkv_bias=bias, output_bias=bias),
        GatedMLP(config, compute, rngs=rngs),
        rngs=rngs,
        norm=ZeroCenteredRMSNorm,
    )


def gemma2_layer(config: Gemma2Config, layer: int, compute, *, rngs) -> SandwichLayer:
    """A block of Gemma 2: scores are capped."""
    bias = config.attention_bias
    attention = SelfAttention(
        config,
        layer,
        compute,
        rngs=rngs,
        qkv_bias=bias,
        output_bias=bias,
        soft_cap=config.attn_logit_softcapping,
    )
    return SandwichLayer(
        config, compute, attention, GatedMLP(config, compute, rngs=rngs), rngs=rngs
    )


def gemma3_layer(config: Gemma3TextConfig, layer: int, compute, *, rngs) -> SandwichLayer:
    """A block of Gemma 3: queries and keys are normalised per head."""
    bias = config.attention_bias
    attention = SelfAttention(
        config,
        layer,
        compute,
        rngs=rngs,
        qkv_bias=bias,
        output_bias=bias,
        query_key_norm=ZeroCenteredRMSNorm,
    )
    return SandwichLayer(
        config, compute, attention, GatedMLP(config, compute, rngs=rngs), rngs=rngs
    )


FAMILY = llama_like_family("gemma", GemmaConfig, gemma_layer, norm=ZeroCenteredRMSNorm)
GEMMA2_FAMILY = llama_like_family(
    "gemma2",
    Gemma2Config,
    gemma2_layer,
    norm=ZeroCenteredRMSNorm,
    ignored_fields=["cache_implementation"],
)
GEMMA3_TEXT_FAMILY = llama_like_family(
    "gemma3_text",
    Gemma3TextConfig,
    gemma3_layer,
    norm=ZeroCenteredRMSNorm,
    # The first is what transformers writes beside the layer_types that it made of it.
    ignored_fields=["_sliding_window_pattern", "cache_implementation"],
)
