"""What llama-like decoders share: their config, the block and its parts, the network.

A family's file puts a block together from the parts here (and its own, where it has some) and says
in its config which window, rotary embedding and scale each layer has.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.attention import attention
from ftjax.models.cache import LayerCache, append, empty_cache
from ftjax.models.decoder_heads import decoder_networks
from ftjax.models.decoder_stack import Context, decoder_masks, default_positions, run_decoder
from ftjax.models.dropout import dropout, split_key
from ftjax.models.family import Family, with_num_labels
from ftjax.models.layers import (
    ACTIVATIONS,
    Activation,
    Compute,
    Network,
    Output,
    embed,
    embedding,
    linear,
    require,
    rms_norm,
)
from ftjax.models.rotary import Rotary, pop_rotary, rotate
from ftjax.models.schema import DERIVED, Count, Epsilon, Layers, Rate, Spread, Token, Width


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The fields of config.json that all llama-like families have; defaults are Llama's.

    `num_labels`, `pad_token_id` and `initializer_range` matter to the classifier only.
    """

    vocab_size: Count = 32000
    hidden_size: Width = 4096
    intermediate_size: Width = 11008
    num_hidden_layers: Layers = 32
    num_attention_heads: Width = 32
    num_key_value_heads: Width = DERIVED
    head_dim: Width = DERIVED
    hidden_act: Activation = "silu"
    max_position_embeddings: Count = 2048
    rms_norm_eps: Epsilon = 1e-6
    attention_dropout: Rate = 0.0
    tie_word_embeddings: bool = False
    rope_parameters: Rotary = dataclasses.field(default_factory=Rotary)
    pad_token_id: Token | None = None
    num_labels: Count = 2
    initializer_range: Spread = 0.02

    def __post_init__(self):
        heads = self.num_attention_heads
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", heads)
        if self.head_dim is None:
            if self.hidden_size % heads:
                raise ValueError(
                    f"config.json: hidden_size = {self.hidden_size} is no multiple of "
                    f"num_attention_heads = {heads}, and there is no head_dim."
                )
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if heads % self.num_key_value_heads:
            raise ValueError(
                f"config.json: num_attention_heads = {heads} is no multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}."
            )
        for rotary in {self.rotary(layer) for layer in range(self.num_hidden_layers)}:
            rotary.check(self.head_dim)

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Rewrites older spellings of the rope parameters and derives `num_labels`.

        Raises:
            ValueError: rope parameters that are not implemented.
        """
        rotary = pop_rotary(fields, max_position_embeddings=cls.max_position_embeddings)
        require("partial_rotary_factor", rotary.partial_rotary_factor, (1.0,))
        return decoder_fields(fields | {"rope_parameters": rotary})

    @property
    def longest_row(self) -> int | None:
        """Most tokens of a row; None where there is no limit."""
        return self.rope_parameters.longest_row

    def window(self, layer: int) -> int | None:
        """How many tokens back a layer sees, the present one included; None for all."""
        return None

    def rotary(self, layer: int) -> Rotary:
        """The layer's rotary embedding."""
        return self.rope_parameters

    @property
    def attention_scale(self) -> float:
        """What the attention scores are multiplied by."""
        return self.head_dim**-0.5

    @property
    def embedding_scale(self) -> float:
        """What the embeddings are multiplied by."""
        return 1.0

    @property
    def embedding_dropout(self) -> float:
        """The dropout rate of the embeddings."""
        return 0.0

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only itself and what comes before it."""
        return True

    @property
    def logit_soft_cap(self) -> float | None:
        """Logits become soft_cap * tanh(logits / soft_cap)."""
        return None


def decoder_fields(fields: dict) -> dict:
    """Derives `num_labels`; a dropout rate of null, as some files have it, is none."""
    if fields.get("attention_dropout", 0.0) is None:
        fields = fields | {"attention_dropout": 0.0}
    return with_num_labels(fields)


LayerType = Literal["full_attention", "sliding_attention"]


@dataclasses.dataclass(frozen=True)
class LayerTypesConfig(DecoderConfig, abc.ABC):
    """A config that says of each layer whether its attention is full or in a sliding window."""

    sliding_window: Count | None = 4096
    layer_types: tuple[LayerType, ...] = DERIVED

    def __post_init__(self):
        if self.layer_types is None:
            object.__setattr__(self, "layer_types", self.default_layer_types())
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"config.json: layer_types has {len(self.layer_types)} entries for "
                f"{self.num_hidden_layers} layers."
            )
        if self.sliding_window is None and "sliding_attention" in self.layer_types:
            raise ValueError(
                "config.json: layer_types has sliding_attention, but sliding_window is null."
            )
        super().__post_init__()

    @abc.abstractmethod
    def default_layer_types(self) -> tuple[str, ...]:
        """The types of the layers where config.json does not list them."""

    def window(self, layer: int) -> int | None:
        """How many tokens back a layer sees, the present one included; None for all."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023).

    A family whose projections are stored in another way overrides `add_projections` and `project`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layer: int,
        compute: Compute,
        *,
        rngs: nnx.Rngs,
        qkv_bias: bool = False,
        output_bias: bool = False,
        query_key_norm: Callable | None = None,
        soft_cap: float | None = None,
    ):
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.key_shape = (self.kv_heads, self.head_dim)
        self.prefix = nnx.data(None)
        self.add_projections(config, compute, bias=qkv_bias, rngs=rngs)
        self.o_proj = linear(
            self.heads * self.head_dim, config.hidden_size, compute, rngs=rngs, bias=output_bias
        )
        if query_key_norm is not None:
            self.q_norm = query_key_norm(self.head_dim, config.rms_norm_eps, compute, rngs=rngs)
            self.k_norm = query_key_norm(self.head_dim, config.rms_norm_eps, compute, rngs=rngs)
        self.has_norms = query_key_norm is not None
        self.rotary = config.rotary(layer)
        self.window = config.window(layer)
        self.scale = config.attention_scale
        self.soft_cap = soft_cap
        self.dropout_rate = config.attention_dropout

    def add_projections(self, config, compute, *, bias, rngs):
        """Adds the projections to queries, keys and values."""
        size, kv_size = config.hidden_size, self.kv_heads * self.head_dim
        query_size = self.heads * self.head_dim
        self.q_proj = linear(size, query_size, compute, rngs=rngs, bias=bias)
        self.k_proj = linear(size, kv_size, compute, rngs=rngs, bias=bias)
        self.v_proj = linear(size, kv_size, compute, rngs=rngs, bias=bias)

    def project(self, hidden):
        """[batch, length, hidden] -> queries, keys, values [batch, length, heads * head_dim]."""
        return self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)

    def __call__(self, hidden, context: Context, key, cache: LayerCache | None):
        """[batch, length, hidden] -> ([batch, length, hidden], the cache with these tokens)."""
        query, keys, values = (
            part.reshape(*hidden.shape[:2], -1, self.head_dim) for part in self.project(hidden)
        )
        if self.has_norms:
            query, keys = self.q_norm(query), self.k_norm(keys)
        tables = context.rotaries[self.rotary]
        query, keys = rotate(query, tables), rotate(keys, tables)
        if cache is not None:
            cache = append(cache, keys, values, context.start)
            keys, values = cache["key"], cache["value"]
        mixed = attention(
            query,
            keys,
            values,
            prefix=self.prefix,
            mask=context.masks[self.window],
            scale=self.scale,
            soft_cap=self.soft_cap,
            dropout_rate=self.dropout_rate,
            dropout_key=key,
        )
        return self.o_proj(mixed.reshape(*hidden.shape[:2], -1)), cache


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(
        self, config: DecoderConfig, compute: Compute, *, rngs: nnx.Rngs, bias: bool = False
    ):
        size, wide = config.hidden_size, config.intermediate_size
        self.gate_proj = linear(size, wide, compute, rngs=rngs, bias=bias)
        self.up_proj = linear(size, wide, compute, rngs=rngs, bias=bias)
        self.down_proj = linear(wide, size, compute, rngs=rngs, bias=bias)
        self.activation = config.hidden_act

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        gate = ACTIVATIONS[self.activation](self.gate_proj(hidden))
        return self.down_proj(gate * self.up_proj(hidden))


class DecoderLayer(nnx.Module):
    """One pre-norm block."""

    def __init__(
        self,
        config: DecoderConfig,
        compute: Compute,
        self_attn: Network,
        mlp: Network,
        *,
        rngs: nnx.Rngs,
        norm: Callable = rms_norm,
        dropout_rate: float = 0.0,
    ):
        size, epsilon = config.hidden_size, config.rms_norm_eps
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = norm(size, epsilon, compute, rngs=rngs)
        self.post_attention_layernorm = norm(size, epsilon, compute, rngs=rngs)
        self.dropout_rate = dropout_rate

    def __call__(self, hidden, context: Context, key, cache: LayerCache | None = None):
        """[batch, length, hidden] -> ([batch, length, hidden], the cache with these tokens)."""
        keys = split_key(key, 3)
        mixed, cache = self.self_attn(self.input_layernorm(hidden), context, keys[0], cache)
        hidden = hidden + dropout(mixed, self.dropout_rate, keys[1])
        wide = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + dropout(wide, self.dropout_rate, keys[2]), cache


class Decoder(nnx.Module):
    """Embeddings, blocks and the final norm.

    Attributes:
        config: the family's.
        compute: how it is computed.
    """

    def __init__(
        self,
        config: DecoderConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        layer: Callable[..., Network],
        rngs: nnx.Rngs,
        norm: Callable = rms_norm,
    ):
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size, compute, rngs=rngs)
        self.layers = nnx.List(
            [layer(config, index, compute, rngs=rngs) for index in range(config.num_hidden_layers)]
        )
        self.norm = norm(config.hidden_size, config.rms_norm_eps, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    @property
    def token_embedding(self) -> nnx.Embed:
        """The table [vocabulary, hidden] that a tied head shares."""
        return self.embed_tokens

    def _scaled_embeddings(self, input_ids: jax.Array) -> jax.Array:
        hidden = self.embed_tokens(input_ids)
        return hidden * jnp.asarray(self.config.embedding_scale, hidden.dtype)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: dict | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """Runs the decoder over a batch of token rows.

        Args:
            input_ids: int [batch, length].
            attention_mask: [batch, length], with a cache [batch, max_length]; nonzero where a token
                is real.
            inputs_embeds: [batch, length, hidden] in place of `input_ids`.
            position_ids: int [batch, length]; 0, 1, 2, ... by default, with a cache from its index.
            segment_ids: int [batch, length] for packed rows: tokens see their own segment only;
                `position_ids` should start anew in each segment.
            cache: from `init_cache` or an earlier call: these tokens follow the ones in it.
            key: random key for dropout; None for evaluation, and with a cache.

        Raises:
            ValueError: a mask that does not fit the cache, or a cache where none can be used.
        """
        config = self.config
        embed_key, blocks_key = split_key(key, 2)
        hidden = embed(self._scaled_embeddings, input_ids, inputs_embeds)
        hidden = dropout(hidden, config.embedding_dropout, embed_key)
        length = hidden.shape[1]
        if position_ids is None:
            position_ids = default_positions(length, cache)
        layers = range(config.num_hidden_layers)
        context = Context(
            masks=decoder_masks(
                {config.window(layer) for layer in layers},
                length,
                attention_mask,
                segment_ids,
                cache,
                causal=config.is_causal,
            ),
            rotaries={
                rotary: rotary.tables(config.head_dim, position_ids)
                for rotary in {config.rotary(layer) for layer in layers}
            },
            start=0 if cache is None else cache["index"],
        )
        return run_decoder(
            self.layers, self.norm, hidden, context, cache, key=blocks_key, compute=self.compute
        )

    def init_cache(self, batch: int, max_length: int, dtype: Any = jnp.float32) -> dict:
        """An empty cache (ftjax/models/cache.py) with room for `max_length` tokens per row."""
        config = self.config
        return empty_cache(
            config.num_hidden_layers,
            batch,
            max_length,
            config.num_key_value_heads,
            config.head_dim,
            dtype,
        )


def llama_like_family(
    model_type: str,
    config: type[DecoderConfig],
    layer: Callable[..., Network],
    *,
    norm: Callable = rms_norm,
    ignored_fields: Iterable[str] = (),
) -> Family:
    """A family whose checkpoints have Llama's names.

    Args:
        model_type: as in config.json.
        config: its config.
        layer: builds a block, called as `layer(config, index, compute, rngs=rngs)`.
        norm: the final norm.
        ignored_fields: as in `Family`.
    """
    return Family(
        model_type=model_type,
        config=config,
        networks=decoder_networks(functools.partial(Decoder, layer=layer, norm=norm)),
        prefix="model.",
        heads=(r"lm_head\..*", r"score\..*"),
        buffers=(r".*rotary_emb\.inv_freq",),
        tied={"lm_head.weight": "model.embed_tokens.weight"},
        ignored_fields=frozenset(ignored_fields),
    )
