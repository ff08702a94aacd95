"""T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683) and mT5 (Xue et al. 2021).

Covers v1.0, v1.1, Flan-T5, ByT5, UL2. Reference implementation: transformers' `T5Model` and
`MT5Model`.
"""

import dataclasses

from flax import nnx

from ftjax.models.attention import attention
from ftjax.models.cache import append
from ftjax.models.dropout import dropout, split_key
from ftjax.models.layers import (
    ACTIVATIONS,
    Compute,
    embedding,
    linear,
    require,
    rms_norm,
)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The fields of config.json that T5's computation uses, with transformers' defaults.

    `feed_forward_proj` is an activation, or "gated-" and an activation. `tie_word_embeddings`
    speaks of the head only: encoder and decoder always share one table. `scale_decoder_outputs`:
    whether the last hidden state is divided by sqrt(d_model) before the head, as v1.0 does.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True

    def __post_init__(self):
        require(
            "feed_forward_proj",
            self.feed_forward_proj,
            (*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)),
        )
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or distance <= buckets // 2:
            raise ValueError(
                f"config.json: relative_attention_num_buckets = {buckets} must be at least 4 and "
                f"less than twice relative_attention_max_distance = {distance}."
            )

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Derives what transformers writes beside `feed_forward_proj`, and checks that it agrees.

        Raises:
            ValueError: if the derived fields are there and say something else.
        """
        config = cls(feed_forward_proj=fields.get("feed_forward_proj", cls.feed_forward_proj))
        require("dense_act_fn", fields.pop("dense_act_fn", config.activation), (config.activation,))
        require("is_gated_act", fields.pop("is_gated_act", config.is_gated), (config.is_gated,))
        untied = fields.get("tie_word_embeddings") is False
        return {"scale_decoder_outputs": not untied} | fields

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states, by the name the other families have for it."""
        return self.d_model

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer multiplies two projections (Shazeer 2020)."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """The activation's name; "gated-gelu" has always meant the tanh approximation."""
        if self.feed_forward_proj == "gated-gelu":
            return "gelu_new"
        return self.feed_forward_proj.removeprefix("gated-")


@dataclasses.dataclass(frozen=True)
class MT5Config(T5Config):
    """mT5: T5 v1.1 with other defaults, whose decoder outputs are never scaled."""

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    scale_decoder_outputs: bool = False

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """As T5's."""
        return super().from_fields(fields) | {"scale_decoder_outputs": False}


class T5Attention(nnx.Module):
    """Attention without biases and without scaling of the scores."""

    def __init__(
        self, config: T5Config, compute: Compute, *, rngs: nnx.Rngs, relative_bias: bool = False
    ):
        inner = config.num_heads * config.d_kv
        self.q = linear(config.d_model, inner, compute, rngs=rngs, bias=False)
        self.k = linear(config.d_model, inner, compute, rngs=rngs, bias=False)
        self.v = linear(config.d_model, inner, compute, rngs=rngs, bias=False)
        self.o = linear(inner, config.d_model, compute, rngs=rngs, bias=False)
        if relative_bias:
            self.relative_attention_bias = embedding(
                config.relative_attention_num_buckets, config.num_heads, compute, rngs=rngs
            )
        self.heads = config.num_heads
        self.dropout_rate = config.dropout_rate

    def keys_and_values(self, states):
        """[batch, length, hidden] -> two [batch, length, heads, d_kv]."""
        split = (*states.shape[:2], self.heads, -1)
        return self.k(states).reshape(split), self.v(states).reshape(split)

    def __call__(self, hidden, keys, values, *, mask, bias, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        mixed = attention(
            self.q(hidden).reshape(*hidden.shape[:2], self.heads, -1),
            keys,
            values,
            mask=mask,
            bias=bias,
            scale=1.0,
            dropout_rate=self.dropout_rate,
            dropout_key=key,
        )
        return self.o(mixed.reshape(*hidden.shape[:2], -1))


class T5LayerSelfAttention(nnx.Module):
    """Self-attention with its norm."""

    def __init__(self, config: T5Config, compute: Compute, *, rngs: nnx.Rngs, relative_bias: bool):
        self.SelfAttention = T5Attention(config, compute, rngs=rngs, relative_bias=relative_bias)
        self.layer_norm = rms_norm(config.d_model, config.layer_norm_epsilon, compute, rngs=rngs)


class T5LayerCrossAttention(nnx.Module):
    """Attention to the encoder's output with its norm."""

    def __init__(self, config: T5Config, compute: Compute, *, rngs: nnx.Rngs):
        self.EncDecAttention = T5Attention(config, compute, rngs=rngs)
        self.layer_norm = rms_norm(config.d_model, config.layer_norm_epsilon, compute, rngs=rngs)


class T5FeedForward(nnx.Module):
    """Two projections, or three where a second one gates the first."""

    def __init__(self, config: T5Config, compute: Compute, *, rngs: nnx.Rngs):
        for name in ("wi_0", "wi_1") if config.is_gated else ("wi",):
            setattr(self, name, linear(config.d_model, config.d_ff, compute, rngs=rngs, bias=False))
        self.wo = linear(config.d_ff, config.d_model, compute, rngs=rngs, bias=False)
        self.activation = config.activation
        self.is_gated = config.is_gated
        self.dropout_rate = config.dropout_rate

    def __call__(self, hidden, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        activation = ACTIVATIONS[self.activation]
        if self.is_gated:
            wide = activation(self.wi_0(hidden)) * self.wi_1(hidden)
        else:
            wide = activation(self.wi(hidden))
        return self.wo(dropout(wide, self.dropout_rate, key))


class T5LayerFF(nnx.Module):
    """The feed-forward layer with its norm."""

    def __init__(self, config: T5Config, compute: Compute, *, rngs: nnx.Rngs):
        self.DenseReluDense = T5FeedForward(config, compute, rngs=rngs)
        self.layer_norm = rms_norm(config.d_model, config.layer_norm_epsilon, compute, rngs=rngs)


class T5Block(nnx.Module):
    """One pre-norm block; `layer` is [self-attention, (cross-attention,) feed-forward]."""

    def __init__(
        self,
        config: T5Config,
        compute: Compute,
        *,
        rngs: nnx.Rngs,
        is_decoder: bool,
        relative_bias: bool,
    ):
        layers = [T5LayerSelfAttention(config, compute, rngs=rngs, relative_bias=relative_bias)]
        if is_decoder:
            layers.append(T5LayerCrossAttention(config, compute, rngs=rngs))
        layers.append(T5LayerFF(config, compute, rngs=rngs))
        self.layer = nnx.List(layers)
        self.dropout_rate = config.dropout_rate

    def encode(self, hidden, mask, bias, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        self_key, feed_forward_key = split_key(key, 2)
        hidden, _ = self._attend_to_self(hidden, mask, bias, self_key, None, None)
        return self._feed_forward(hidden, feed_forward_key)

    def decode(self, hidden, mask, bias, encoder, encoder_mask, key, layer_cache=None, index=None):
        """[batch, length, hidden] -> ([batch, length, hidden], updated layer of the cache)."""
        self_key, cross_key, feed_forward_key = split_key(key, 3)
        hidden, layer_cache = self._attend_to_self(hidden, mask, bias, self_key, layer_cache, index)
        attention_key, residual_key = split_key(cross_key, 2)
        cross = self.layer[1]
        keys, values = cross_keys_and_values(layer_cache, cross.EncDecAttention, encoder)
        mixed = cross.EncDecAttention(
            cross.layer_norm(hidden), keys, values, mask=encoder_mask, bias=None, key=attention_key
        )
        hidden = hidden + dropout(mixed, self.dropout_rate, residual_key)
        return self._feed_forward(hidden, feed_forward_key), layer_cache

    def _attend_to_self(self, hidden, mask, bias, key, layer_cache, index):
        attention_key, residual_key = split_key(key, 2)
        own = self.layer[0]
        normed = own.layer_norm(hidden)
        keys, values = own.SelfAttention.keys_and_values(normed)
        if layer_cache is not None:
            layer_cache = append(layer_cache, keys, values, index)
            keys, values = layer_cache["key"], layer_cache["value"]
        mixed = own.SelfAttention(normed, keys, values, mask=mask, bias=bias, key=attention_key)
        return hidden + dropout(mixed, self.dropout_rate, residual_key), layer_cache

    def _feed_forward(self, hidden, key):
        inner_key, residual_key = split_key(key, 2)
        last = self.layer[-1]
        wide = last.DenseReluDense(last.layer_norm(hidden), inner_key)
        return hidden + dropout(wide, self.dropout_rate, residual_key)
