"""Phi-3, Phi-3.5 and Phi-4-mini (Abdin et al. 2024, https://arxiv.org/abs/2404.14219).

Reference implementation: transformers' `Phi3ForCausalLM`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from ftjax.models.decoder import (
    DecoderConfig,
    DecoderLayer,
    SelfAttention,
    decoder_fields,
    llama_like_family,
)
from ftjax.models.layers import ACTIVATIONS, Compute, linear, require
from ftjax.models.rotary import pop_rotary
from ftjax.models.schema import Count, Epsilon, Rate, Token, Width, as_object

# What published configs also write, and the only value the reference implements.
FIXED_FIELDS = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
}


@dataclasses.dataclass(frozen=True)
class Phi3Config(DecoderConfig):
    """The fields of config.json that Phi-3's computation uses, with transformers' defaults."""

    vocab_size: Count = 32064
    hidden_size: Width = 3072
    intermediate_size: Width = 8192
    max_position_embeddings: Count = 4096
    rms_norm_eps: Epsilon = 1e-5
    pad_token_id: Token | None = 32000
    sliding_window: Count | None = None
    embd_pdrop: Rate = 0.0
    resid_pdrop: Rate = 0.0

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Rewrites older spellings; "su" and "yarn" were names of longrope.

        Raises:
            ValueError: a field or rope parameters that are not implemented.
        """
        for name, value in FIXED_FIELDS.items():
            require(name, fields.pop(name, value), (value,))
        fields.setdefault("original_max_position_embeddings", 4096)
        for name in ("rope_scaling", "rope_parameters"):
            fields[name] = _with_present_names(as_object(name, fields.get(name)))
        rotary = pop_rotary(fields, max_position_embeddings=cls.max_position_embeddings)
        require("rope_type", rotary.rope_type, ("default", "longrope"))
        return decoder_fields(fields | {"rope_parameters": rotary})

    def window(self, layer: int) -> int | None:
        """The same window in all layers."""
        return self.sliding_window

    @property
    def embedding_dropout(self) -> float:
        """The dropout rate of the embeddings."""
        return self.embd_pdrop


def _with_present_names(parameters: dict) -> dict:
    name = parameters.get("rope_type", parameters.get("type"))
    return parameters | {"rope_type": "longrope"} if name in ("su", "yarn") else parameters


class Phi3Attention(SelfAttention):
    """Attention whose projections are stored as one."""

    def add_projections(self, config, compute, *, bias, rngs):
        """Adds the projection to queries, keys and values."""
        size = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = linear(config.hidden_size, size, compute, rngs=rngs, bias=bias)

    def project(self, hidden):
        """[batch, length, hidden] -> queries, keys, values [batch, length, heads * head_dim]."""
        query_size = self.heads * self.head_dim
        boundaries = (query_size, query_size + self.kv_heads * self.head_dim)
        query, key, value = jnp.split(self.qkv_proj(hidden), boundaries, axis=-1)
        return query, key, value


class Phi3MLP(nnx.Module):
    """The gated feed-forward layer, gate and up projection stored as one."""

    def __init__(self, config: Phi3Config, compute: Compute, *, rngs: nnx.Rngs):
        size, wide = config.hidden_size, config.intermediate_size
        self.gate_up_proj = linear(size, 2 * wide, compute, rngs=rngs, bias=False)
        self.down_proj = linear(wide, size, compute, rngs=rngs, bias=False)
        self.activation = config.hidden_act

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        gate, up = jnp.split(self.gate_up_proj(hidden), 2, axis=-1)
        return self.down_proj(ACTIVATIONS[self.activation](gate) * up)


def phi3_layer(config: Phi3Config, layer: int, compute, *, rngs) -> DecoderLayer:
    """A block of Phi-3."""
    return DecoderLayer(
        config,
        compute,
        Phi3Attention(config, layer, compute, rngs=rngs),
        Phi3MLP(config, compute, rngs=rngs),
        rngs=rngs,
        dropout_rate=config.resid_pdrop,
    )


FAMILY = llama_like_family("phi3", Phi3Config, phi3_layer)
