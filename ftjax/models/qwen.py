"""Qwen 2 and 2.5 (https://arxiv.org/abs/2407.10671), Qwen 3 (https://arxiv.org/abs/2505.09388).

The dense ones. Reference implementations: transformers' `Qwen2ForCausalLM` and `Qwen3ForCausalLM`.
"""

import dataclasses

from ftjax.models.decoder import (
    DecoderLayer,
    GatedMLP,
    LayerTypesConfig,
    SelfAttention,
    llama_like_family,
)
from ftjax.models.layers import require, rms_norm
from ftjax.models.schema import Count, Natural, Width


@dataclasses.dataclass(frozen=True)
class Qwen2Config(LayerTypesConfig):
    """The fields of config.json that Qwen 2's computation uses, with transformers' defaults.

    Without `layer_types`, layers from `max_window_layers` on see `sliding_window` tokens if
    `use_sliding_window`.
    """

    vocab_size: Count = 151936
    intermediate_size: Width = 22016
    num_key_value_heads: Width = 32
    max_position_embeddings: Count = 32768
    use_sliding_window: bool = False
    max_window_layers: Natural = 28

    def __post_init__(self):
        if not self.use_sliding_window:
            object.__setattr__(self, "sliding_window", None)
        super().__post_init__()

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Rewrites older spellings.

        Raises:
            ValueError: rope parameters that are not implemented.
        """
        require("use_mrope", fields.pop("use_mrope", False), (False,))
        return super().from_fields(fields)

    def default_layer_types(self) -> tuple[str, ...]:
        """Full attention below `max_window_layers`."""
        first = self.num_hidden_layers if self.sliding_window is None else self.max_window_layers
        return tuple(
            "sliding_attention" if layer >= first else "full_attention"
            for layer in range(self.num_hidden_layers)
        )


@dataclasses.dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """The fields of config.json that Qwen 3's computation uses, with transformers' defaults."""

    head_dim: Width = 128
    attention_bias: bool = False


def qwen2_layer(config: Qwen2Config, layer: int, compute, *, rngs) -> DecoderLayer:
    """A block of Qwen 2: biases on queries, keys and values."""
    return DecoderLayer(
        config,
        compute,
        SelfAttention(config, layer, compute, rngs=rngs, qkv_bias=True),
        GatedMLP(config, compute, rngs=rngs),
        rngs=rngs,
    )


def qwen3_layer(config: Qwen3Config, layer: int, compute, *, rngs) -> DecoderLayer:
    """A block of Qwen 3: queries and keys are normalised per head."""
    return DecoderLayer(
        config,
        compute,
        SelfAttention(
            config,
            layer,
            compute,
            rngs=rngs,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            query_key_norm=rms_norm,
        ),
        GatedMLP(config, compute, rngs=rngs),
        rngs=rngs,
    )


FAMILY = llama_like_family("qwen2", Qwen2Config, qwen2_layer)
QWEN3_FAMILY = llama_like_family("qwen3", Qwen3Config, qwen3_layer)
