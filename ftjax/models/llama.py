"""Llama (Touvron et al. 2023, https://arxiv.org/abs/2307.09288) and Mistral (Jiang et al. 2023).

Covers Llama 2 and 3, SmolLM, TinyLlama, Mistral 7B.
Reference implementations: transformers'
`LlamaForCausalLM` and `MistralForCausalLM`.
"""

import dataclasses

from ftjax.models.decoder import (
    DecoderConfig,
    DecoderLayer,
    GatedMLP,
    SelfAttention,
    llama_like_family,
)
from ftjax.models.layers import require
from ftjax.models.schema import Count, Width


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """The fields of config.json that Llama's computation uses, with transformers' defaults."""

    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Rewrites older spellings.

        Raises:
            ValueError: rope parameters that are not implemented.
        """
        require("rope_interleaved", fields.pop("rope_interleaved", False), (False,))
        return super().from_fields(fields)


def llama_layer(config: LlamaConfig, layer: int, compute, *, rngs) -> DecoderLayer:
    """A block of Llama."""
    bias = config.attention_bias
    return DecoderLayer(
        config,
        compute,
        SelfAttention(config, layer, compute, rngs=rngs, qkv_bias=bias, output_bias=bias),
        GatedMLP(config, compute, rngs=rngs, bias=config.mlp_bias),
        rngs=rngs,
    )


@dataclasses.dataclass(frozen=True)
class MistralConfig(DecoderConfig):
    """The fields of config.json that Mistral's computation uses, with transformers' defaults."""

    intermediate_size: Width = 14336
    num_key_value_heads: Width = 8
    max_position_embeddings: Count = 131072
    sliding_window: Count | None = 4096

    def window(self, layer: int) -> int | None:
        """The same window in all layers."""
        return self.sliding_window


def mistral_layer(config: MistralConfig, layer: int, compute, *, rngs) -> DecoderLayer:
    """A block of Mistral."""
    return DecoderLayer(
        config,
        compute,
        SelfAttention(config, layer, compute, rngs=rngs),
        GatedMLP(config, compute, rngs=rngs),
        rngs=rngs,
    )


FAMILY = llama_like_family(
    "llama",
    LlamaConfig,
    llama_layer,
    # pretraining_tp splits matrix products without changing them.
    ignored_fields=["is_llama_config", "pretraining_tp", "transformers.js_config"],
)
MISTRAL_FAMILY = llama_like_family("mistral", MistralConfig, mistral_layer)
