"""T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683) and mT5 (Xue et al. 2021).

Covers v1.0, v1.1, Flan-T5, ByT5, UL2. Reference implementation: transformers' `T5Model` and
`MT5Model`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.attention import attention, make_attention_mask
from ftjax.models.cache import append, apply_cached_blocks, cross_keys_and_values
from ftjax.models.dropout import dropout, split_key
from ftjax.models.encoder_decoder import EncoderDecoder, EncoderDecoderLM
from ftjax.models.family import Family
from ftjax.models.layers import (
    ACTIVATIONS,
    Compute,
    Network,
    Output,
    apply_blocks,
    embed,
    embedding,
    linear,
    require,
    rms_norm,
)
from ftjax.models.schema import Count, Epsilon, Layers, Rate, Width


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The fields of config.json that T5's computation uses, with transformers' defaults.

    `feed_forward_proj` is an activation, or "gated-" and an activation. `tie_word_embeddings`
    speaks of the head only: encoder and decoder always share one table. `scale_decoder_outputs`:
    whether the last hidden state is divided by sqrt(d_model) before the head, as v1.0 does.
    """

    vocab_size: Count = 32128
    d_model: Width = 512
    d_kv: Width = 64
    d_ff: Width = 2048
    num_layers: Layers = 6
    num_decoder_layers: Layers | None = None
    num_heads: Width = 8
    relative_attention_num_buckets: Width = 32
    relative_attention_max_distance: Width = 128
    dropout_rate: Rate = 0.1
    layer_norm_epsilon: Epsilon = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True

    def __post_init__(self):
        require(
            "feed_forward_proj",
            self.feed_forward_proj,
            (*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)),
        )
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
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

    vocab_size: Count = 250112
    d_ff: Width = 1024
    num_layers: Layers = 8
    num_heads: Width = 6
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
        self.head_dim = config.d_kv
        self.key_shape = (self.heads, self.head_dim)
        self.prefix = nnx.data(None)
        self.dropout_rate = config.dropout_rate

    def keys_and_values(self, states):
        """[batch, length, hidden] -> two [batch, length, heads, d_kv]."""
        split = (*states.shape[:2], self.heads, self.head_dim)
        return self.k(states).reshape(split), self.v(states).reshape(split)

    def __call__(self, hidden, keys, values, *, mask, bias, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        mixed = attention(
            self.q(hidden).reshape(*hidden.shape[:2], self.heads, self.head_dim),
            keys,
            values,
            prefix=self.prefix,
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
        def wide() -> nnx.Linear:
            return linear(config.d_model, config.d_ff, compute, rngs=rngs, bias=False)

        if config.is_gated:
            self.wi_0, self.wi_1 = wide(), wide()
        else:
            self.wi = wide()
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
        layers: list[Network] = [
            T5LayerSelfAttention(config, compute, rngs=rngs, relative_bias=relative_bias)
        ]
        if is_decoder:
            layers.append(T5LayerCrossAttention(config, compute, rngs=rngs))
        layers.append(T5LayerFF(config, compute, rngs=rngs))
        self.layer = nnx.List(layers)
        self.dropout_rate = config.dropout_rate

    def encode(self, hidden, mask, bias, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        keys = split_key(key, 4)
        hidden, _ = self._attend_to_self(hidden, mask, bias, keys[:2])
        return self._feed_forward(hidden, keys[2:])

    def decode(self, hidden, mask, bias, encoder, encoder_mask, key, layer_cache=None, index=0):
        """[batch, length, hidden] -> ([batch, length, hidden], updated layer of the cache)."""
        keys = split_key(key, 6)
        hidden, layer_cache = self._attend_to_self(hidden, mask, bias, keys[:2], layer_cache, index)
        cross = self.layer[1]
        mixed = cross.EncDecAttention(
            cross.layer_norm(hidden),
            *cross_keys_and_values(layer_cache, cross.EncDecAttention, encoder),
            mask=encoder_mask,
            bias=None,
            key=keys[2],
        )
        hidden = hidden + dropout(mixed, self.dropout_rate, keys[3])
        return self._feed_forward(hidden, keys[4:]), layer_cache

    def _attend_to_self(self, hidden, mask, bias, keys, layer_cache=None, index=0):
        own = self.layer[0]
        normed = own.layer_norm(hidden)
        key, value = own.SelfAttention.keys_and_values(normed)
        if layer_cache is not None:
            layer_cache = append(layer_cache, key, value, index)
            key, value = layer_cache["key"], layer_cache["value"]
        mixed = own.SelfAttention(normed, key, value, mask=mask, bias=bias, key=keys[0])
        return hidden + dropout(mixed, self.dropout_rate, keys[1]), layer_cache

    def _feed_forward(self, hidden, keys):
        last = self.layer[-1]
        wide = last.DenseReluDense(last.layer_norm(hidden), keys[0])
        return hidden + dropout(wide, self.dropout_rate, keys[1])


class T5Stack(nnx.Module):
    """The blocks of the encoder or of the decoder, and the norm after them."""

    def __init__(
        self,
        config: T5Config,
        compute: Compute,
        num_layers: int,
        *,
        is_decoder: bool,
        rngs: nnx.Rngs,
    ):
        self.block = nnx.List(
            [
                T5Block(config, compute, rngs=rngs, is_decoder=is_decoder, relative_bias=index == 0)
                for index in range(num_layers)
            ]
        )
        self.final_layer_norm = rms_norm(
            config.d_model, config.layer_norm_epsilon, compute, rngs=rngs
        )
        self.config = config
        self.compute = compute
        self.is_decoder = is_decoder

    def encode(self, hidden, attention_mask, segment_ids, key):
        """[batch, length, hidden] -> Output."""
        keys = split_key(key, 3)
        mask = make_attention_mask(attention_mask, segment_ids=segment_ids)
        bias = self.position_bias(hidden.shape[1], hidden.shape[1])
        hidden, states = apply_blocks(
            self.block,
            dropout(hidden, self.config.dropout_rate, keys[0]),
            lambda block, hidden, key: block.encode(hidden, mask, bias, key),
            key=keys[1],
            compute=self.compute,
        )
        return self._finish(states, keys[2])

    def decode(self, hidden, attention_mask, encoder, encoder_mask, cache, key):
        """[batch, length, hidden] -> Output."""
        keys = split_key(key, 3)
        length = hidden.shape[1]
        key_length = length if cache is None else cache["layers"][0]["key"].shape[1]
        index = 0 if cache is None else cache["index"]
        mask = make_attention_mask(
            attention_mask,
            causal=True,
            length=key_length,
            query_length=length,
            query_offset=index,
        )
        bias = self.position_bias(length, key_length, index)
        encoder_mask = make_attention_mask(encoder_mask)
        inputs = (mask, bias, encoder, encoder_mask)
        hidden = dropout(hidden, self.config.dropout_rate, keys[0])
        if cache is None:
            hidden, states = apply_blocks(
                self.block,
                hidden,
                lambda block, hidden, key: block.decode(hidden, *inputs, key)[0],
                key=keys[1],
                compute=self.compute,
            )
        else:
            hidden, states, cache = apply_cached_blocks(
                self.block,
                hidden,
                lambda block, hidden, layer: block.decode(hidden, *inputs, None, layer, index),
                cache,
            )
        return self._finish(states, keys[2])._replace(cache=cache)

    def cross_attentions(self) -> list[T5Attention]:
        """Each block's attention to the encoder's output."""
        return [block.layer[1].EncDecAttention for block in self.block]

    def position_bias(self, query_length: int, key_length: int, query_offset=0):
        """[1, heads, query_length, key_length], for all blocks from the table in the first one."""
        furthest = self.config.relative_attention_max_distance
        buckets = relative_position_buckets(
            self.config.relative_attention_num_buckets, furthest, bidirectional=not self.is_decoder
        )
        distance = jnp.arange(key_length)[None] - jnp.arange(query_length)[:, None] - query_offset
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        rows = table(jnp.asarray(buckets)[jnp.clip(distance, -furthest, furthest) + furthest])
        return rows.transpose(2, 0, 1)[None]

    def _finish(self, states, key):
        hidden = dropout(self.final_layer_norm(states[-1]), self.config.dropout_rate, key)
        return Output(hidden, (*states[:-1], hidden))


def relative_position_buckets(
    num_buckets: int, max_distance: int, *, bidirectional: bool
) -> np.ndarray:
    """The bucket of each distance from query to key.

    Small distances have a bucket each, larger ones share buckets that widen logarithmically; from
    max_distance on all are in the last. A decoder has no buckets for what comes after, an encoder
    gives that one half of them. (Reference: mesh_tensorflow's `_relative_position_bucket`.)

    Returns:
        int32 [2 * max_distance + 1], for the distances -max_distance ... max_distance.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    if bidirectional:
        num_buckets //= 2
        first, distance = num_buckets * (distance > 0), np.abs(distance)
    else:
        first, distance = 0, -np.minimum(distance, 0)
    exact = num_buckets // 2
    # In float32 as in the reference, since rounding decides at the edges of the buckets.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(num_buckets - exact)
    large = np.minimum(exact + ratio.astype(np.int32), num_buckets - 1)
    return (first + np.where(distance < exact, distance, large)).astype(np.int32)


class T5Encoder(nnx.Module):
    """The encoder alone, as a text encoder."""

    def __init__(
        self,
        config: T5Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.shared = embedding(config.vocab_size, config.d_model, compute, rngs=rngs)
        self.encoder = T5Stack(config, compute, config.num_layers, is_decoder=False, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """Encodes a batch of token rows.

        Positions count only through distances, so packed rows need nothing but `segment_ids`.

        Args:
            input_ids: int [batch, length].
            attention_mask: [batch, length], nonzero where a token is real.
            inputs_embeds: [batch, length, hidden] in place of `input_ids`.
            segment_ids: int [batch, length] for packed rows: tokens see their own segment only.
            key: random key for dropout; None for evaluation.
        """
        hidden = embed(self.shared, input_ids, inputs_embeds)
        return self.encoder.encode(hidden, attention_mask, segment_ids, key)


class T5Model(EncoderDecoder):
    """Encoder and decoder, which share one table of embeddings."""

    def __init__(
        self,
        config: T5Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        decoder_layers = config.num_decoder_layers or config.num_layers
        self.shared = embedding(config.vocab_size, config.d_model, compute, rngs=rngs)
        self.encoder = T5Stack(config, compute, config.num_layers, is_decoder=False, rngs=rngs)
        self.decoder = T5Stack(config, compute, decoder_layers, is_decoder=True, rngs=rngs)
        self.config = config
        self.compute = compute

    def embed_source(self, input_ids: jax.Array) -> jax.Array:
        """Int [batch, length] -> [batch, length, hidden]."""
        return self.shared(input_ids)

    embed_target = embed_source


class T5LM(EncoderDecoderLM):
    """T5 with its language-model head, tied to the embeddings or of its own."""

    def __init__(
        self,
        config: T5Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = T5Model(config, compute, rngs=rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else linear(config.d_model, config.vocab_size, compute, rngs=rngs, bias=False)
        )
        self.config = config
        self.compute = compute

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[batch, length, hidden] -> [batch, length, vocabulary]."""
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return self.backbone.shared.attend(hidden) if self.lm_head is None else self.lm_head(hidden)


FAMILY = Family(
    model_type="t5",
    config=T5Config,
    networks={"backbone": T5Model, "encoder": T5Encoder, "seq2seq_lm": T5LM},
    # `decoder` is what a T5Encoder leaves behind.
    heads=(r"lm_head\..*", r"decoder\..*", r"classification_head\..*"),
    # In the oldest files; cross-attention has no use for it.
    buffers=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    tied={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
    ignored_fields=frozenset(["is_encoder_decoder", "n_positions"]),
)
MT5_FAMILY = dataclasses.replace(FAMILY, model_type="mt5", config=MT5Config)
