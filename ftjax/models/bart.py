"""BART (Lewis et al. 2020, https://arxiv.org/abs/1910.13461) and its relatives mBART and Marian.

mBART (Liu et al. 2020) normalises before each sublayer; Marian (Junczys-Dowmunt et al. 2018) has
sinusoidal positions and no norm of the embeddings. Reference implementation: transformers'
`BartModel`, `MBartModel` and `MarianModel`.
"""

import dataclasses
from typing import Annotated, ClassVar

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
    Activation,
    Compute,
    Constant,
    Output,
    apply_blocks,
    embedding,
    layer_norm,
    linear,
    require,
    require_heads_divide,
    require_positions,
)
from ftjax.models.schema import Bounds, Count, Layers, Rate, Width


@dataclasses.dataclass(frozen=True)
class BartConfig:
    """The fields of config.json that BART's computation uses, with transformers' defaults.

    Attributes:
        pre_norm: whether norms stand before the sublayers, and one more after the last block.
        embedding_norm: whether the sum of embeddings is normalised.
        sinusoidal: whether positions are fixed sinusoids and not learned.
    """

    vocab_size: Count = 50265
    max_position_embeddings: Count = 1024
    encoder_layers: Layers = 12
    encoder_ffn_dim: Width = 4096
    encoder_attention_heads: Width = 16
    decoder_layers: Layers = 12
    decoder_ffn_dim: Width = 4096
    decoder_attention_heads: Width = 16
    activation_function: Activation = "gelu"
    d_model: Width = 1024
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.0
    activation_dropout: Rate = 0.0
    scale_embedding: bool = False
    tie_word_embeddings: bool = True

    pre_norm: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True
    sinusoidal: ClassVar[bool] = False

    def __post_init__(self):
        for side in ("encoder", "decoder"):
            field = f"{side}_attention_heads"
            require_heads_divide("d_model", self.d_model, field, getattr(self, field))

    @classmethod
    def from_fields(cls, fields: dict) -> dict:
        """Drops what transformers 3 wrote about the family's shape, once it agrees.

        Raises:
            ValueError: if one of these fields says something else.
        """
        shape = {
            "normalize_before": cls.pre_norm,
            "add_final_layer_norm": cls.pre_norm,
            "normalize_embedding": cls.embedding_norm,
            "static_position_embeddings": cls.sinusoidal,
            "do_blenderbot_90_layernorm": False,
        }
        for name, value in shape.items():
            require(name, fields.pop(name, value), (value,))
        return fields

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states, by the name the other families have for it."""
        return self.d_model

    @property
    def longest_row(self) -> int:
        """Most tokens of a source, and of a target."""
        return self.max_position_embeddings

    @property
    def is_shared(self) -> bool:
        """Whether encoder, decoder and head use one table of embeddings."""
        return self.tie_word_embeddings

    @property
    def target_vocab_size(self) -> int:
        """Rows of the decoder's table."""
        return self.vocab_size


@dataclasses.dataclass(frozen=True)
class MBartConfig(BartConfig):
    """mBART: BART with norms before the sublayers."""

    pre_norm: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class MarianConfig(BartConfig):
    """Marian: BART with sinusoidal positions, and perhaps a vocabulary per side."""

    vocab_size: Count = 58101
    # Sinusoids are computed, for so many positions, and no file bounds them.
    max_position_embeddings: Annotated[int, Bounds(1, 2**16)] = 1024
    decoder_vocab_size: Count | None = None
    share_encoder_decoder_embeddings: bool = True

    embedding_norm: ClassVar[bool] = False
    sinusoidal: ClassVar[bool] = True

    @property
    def is_shared(self) -> bool:
        """Whether encoder, decoder and head use one table of embeddings."""
        return self.tie_word_embeddings and self.share_encoder_decoder_embeddings

    @property
    def target_vocab_size(self) -> int:
        """Rows of the decoder's table."""
        if self.share_encoder_decoder_embeddings:
            return self.vocab_size
        return self.decoder_vocab_size or self.vocab_size


class BartAttention(nnx.Module):
    """Attention with its four projections."""

    def __init__(self, config: BartConfig, heads: int, compute: Compute, *, rngs: nnx.Rngs):
        size = config.d_model
        self.q_proj = linear(size, size, compute, rngs=rngs)
        self.k_proj = linear(size, size, compute, rngs=rngs)
        self.v_proj = linear(size, size, compute, rngs=rngs)
        self.out_proj = linear(size, size, compute, rngs=rngs)
        self.heads = heads
        self.head_dim = size // heads
        self.key_shape = (self.heads, self.head_dim)
        self.prefix = nnx.data(None)
        self.dropout_rate = config.attention_dropout

    def keys_and_values(self, states):
        """[batch, length, hidden] -> two [batch, length, heads, head_dim]."""
        split = (*states.shape[:2], self.heads, self.head_dim)
        return self.k_proj(states).reshape(split), self.v_proj(states).reshape(split)

    def __call__(self, hidden, keys, values, *, mask, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        mixed = attention(
            self.q_proj(hidden).reshape(*hidden.shape[:2], self.heads, self.head_dim),
            keys,
            values,
            prefix=self.prefix,
            mask=mask,
            dropout_rate=self.dropout_rate,
            dropout_key=key,
        )
        return self.out_proj(mixed.reshape(hidden.shape))


class BartBlock(nnx.Module):
    """One block of the encoder, or with `encoder_attn` of the decoder."""

    def __init__(self, config: BartConfig, compute: Compute, *, is_decoder: bool, rngs: nnx.Rngs):
        side = "decoder" if is_decoder else "encoder"
        heads = getattr(config, f"{side}_attention_heads")
        width = getattr(config, f"{side}_ffn_dim")
        size = config.d_model
        self.self_attn = BartAttention(config, heads, compute, rngs=rngs)
        self.self_attn_layer_norm = layer_norm(size, 1e-5, compute, rngs=rngs)
        if is_decoder:
            self.encoder_attn = BartAttention(config, heads, compute, rngs=rngs)
            self.encoder_attn_layer_norm = layer_norm(size, 1e-5, compute, rngs=rngs)
        self.fc1 = linear(size, width, compute, rngs=rngs)
        self.fc2 = linear(width, size, compute, rngs=rngs)
        self.final_layer_norm = layer_norm(size, 1e-5, compute, rngs=rngs)
        self.config = config

    def encode(self, hidden, mask, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        keys = split_key(key, 4)
        hidden, _ = self._attend_to_self(hidden, mask, keys[:2])
        return self._feed_forward(hidden, keys[2:])

    def decode(self, hidden, mask, encoder, encoder_mask, key, layer_cache=None, index=0):
        """[batch, length, hidden] -> ([batch, length, hidden], updated layer of the cache)."""
        keys = split_key(key, 6)
        hidden, layer_cache = self._attend_to_self(hidden, mask, keys[:2], layer_cache, index)
        norm = self.encoder_attn_layer_norm
        mixed = self.encoder_attn(
            self._before(norm, hidden),
            *cross_keys_and_values(layer_cache, self.encoder_attn, encoder),
            mask=encoder_mask,
            key=keys[2],
        )
        hidden = self._after(norm, hidden, mixed, keys[3])
        return self._feed_forward(hidden, keys[4:]), layer_cache

    def _attend_to_self(self, hidden, mask, keys, layer_cache=None, index=0):
        norm = self.self_attn_layer_norm
        inputs = self._before(norm, hidden)
        key, value = self.self_attn.keys_and_values(inputs)
        if layer_cache is not None:
            layer_cache = append(layer_cache, key, value, index)
            key, value = layer_cache["key"], layer_cache["value"]
        mixed = self.self_attn(inputs, key, value, mask=mask, key=keys[0])
        return self._after(norm, hidden, mixed, keys[1]), layer_cache

    def _feed_forward(self, hidden, keys):
        norm = self.final_layer_norm
        wide = self.fc1(self._before(norm, hidden))
        wide = ACTIVATIONS[self.config.activation_function](wide)
        wide = dropout(wide, self.config.activation_dropout, keys[0])
        return self._after(norm, hidden, self.fc2(wide), keys[1])

    def _before(self, norm, hidden):
        return norm(hidden) if self.config.pre_norm else hidden

    def _after(self, norm, hidden, change, key):
        hidden = hidden + dropout(change, self.config.dropout, key)
        return hidden if self.config.pre_norm else norm(hidden)


class BartStack(nnx.Module):
    """Positions and blocks of the encoder or of the decoder, with the word table if it has one."""

    # BART's position 0 is row 2 of the table.
    position_offset = 2

    def __init__(self, config: BartConfig, compute: Compute, *, is_decoder: bool, rngs: nnx.Rngs):
        size = config.d_model
        if not config.is_shared:
            rows = config.target_vocab_size if is_decoder else config.vocab_size
            self.embed_tokens = embedding(rows, size, compute, rngs=rngs)
        if not config.sinusoidal:
            rows = config.max_position_embeddings + self.position_offset
            self.embed_positions = embedding(rows, size, compute, rngs=rngs)
        if config.embedding_norm:
            self.layernorm_embedding = layer_norm(size, 1e-5, compute, rngs=rngs)
        self.layers = nnx.List(
            [
                BartBlock(config, compute, is_decoder=is_decoder, rngs=rngs)
                for _ in range(config.decoder_layers if is_decoder else config.encoder_layers)
            ]
        )
        if config.pre_norm:
            self.layer_norm = layer_norm(size, 1e-5, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def encode(self, hidden, attention_mask, segment_ids, key):
        """[batch, length, hidden] -> Output."""
        embed_key, blocks_key = split_key(key, 2)
        mask = make_attention_mask(attention_mask, segment_ids=segment_ids)
        hidden, states = apply_blocks(
            self.layers,
            self._add_positions(hidden, hidden.shape[1], 0, embed_key),
            lambda block, hidden, key: block.encode(hidden, mask, key),
            key=blocks_key,
            compute=self.compute,
        )
        return self._finish(states)

    def decode(self, hidden, attention_mask, encoder, encoder_mask, cache, key):
        """[batch, length, hidden] -> Output."""
        embed_key, blocks_key = split_key(key, 2)
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
        inputs = (mask, encoder, make_attention_mask(encoder_mask))
        hidden = self._add_positions(hidden, key_length, index, embed_key)
        if cache is None:
            hidden, states = apply_blocks(
                self.layers,
                hidden,
                lambda block, hidden, key: block.decode(hidden, *inputs, key)[0],
                key=blocks_key,
                compute=self.compute,
            )
        else:
            hidden, states, cache = apply_cached_blocks(
                self.layers,
                hidden,
                lambda block, hidden, layer: block.decode(hidden, *inputs, None, layer, index),
                cache,
            )
        return self._finish(states)._replace(cache=cache)

    def cross_attentions(self) -> list[BartAttention]:
        """Each block's attention to the encoder's output."""
        return [block.encoder_attn for block in self.layers]

    def _add_positions(self, hidden, total_length, first, key):
        most = self.config.longest_row
        require_positions(total_length, most)
        positions = jnp.arange(hidden.shape[1]) + first
        if self.config.sinusoidal:
            table = jnp.asarray(sinusoidal_positions(most, self.config.d_model), hidden.dtype)
            hidden = hidden + table[positions]
        else:
            hidden = hidden + self.embed_positions(positions + self.position_offset)
        if self.config.embedding_norm:
            hidden = self.layernorm_embedding(hidden)
        return dropout(hidden, self.config.dropout, key)

    def _finish(self, states):
        last = self.layer_norm(states[-1]) if self.config.pre_norm else states[-1]
        return Output(last, (*states[:-1], last))


def sinusoidal_positions(rows: int, features: int) -> np.ndarray:
    """Marian's fixed positions: all sines, then all cosines (Vaswani et al. 2017 interleave them).

    Returns:
        float32 [rows, features].
    """
    frequencies = 10000.0 ** (-2.0 * (np.arange(features) // 2) / features)
    angles = np.arange(rows)[:, None] * frequencies
    halves = [np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])]
    return np.concatenate(halves, axis=1).astype(np.float32)


class BartModel(EncoderDecoder):
    """Encoder and decoder."""

    def __init__(
        self,
        config: BartConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        if config.is_shared:
            self.shared = embedding(config.vocab_size, config.d_model, compute, rngs=rngs)
        self.encoder = BartStack(config, compute, is_decoder=False, rngs=rngs)
        self.decoder = BartStack(config, compute, is_decoder=True, rngs=rngs)
        self.config = config
        self.compute = compute

    def embed_source(self, input_ids: jax.Array) -> jax.Array:
        """Int [batch, length] -> [batch, length, hidden]."""
        return self._embed(self.encoder, input_ids)

    def embed_target(self, decoder_input_ids: jax.Array) -> jax.Array:
        """Int [batch, length] -> [batch, length, hidden]."""
        return self._embed(self.decoder, decoder_input_ids)

    def target_table(self) -> nnx.Embed:
        """The embeddings of the decoder, which a tied head repeats."""
        return self.shared if self.config.is_shared else self.decoder.embed_tokens

    def _embed(self, stack, ids):
        table = self.shared if self.config.is_shared else stack.embed_tokens
        scale = self.config.d_model**0.5 if self.config.scale_embedding else 1.0
        return table(ids) * scale


class BartLM(EncoderDecoderLM):
    """BART with its language-model head, tied to the embeddings or of its own."""

    def __init__(
        self,
        config: BartConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = BartModel(config, compute, rngs=rngs)
        rows = config.target_vocab_size
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else linear(config.d_model, rows, compute, rngs=rngs, bias=False)
        )
        self.final_logits_bias = Constant(jnp.zeros((1, rows), compute.param_dtype))
        self.config = config
        self.compute = compute

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[batch, length, hidden] -> [batch, length, vocabulary]."""
        head = self.backbone.target_table().attend if self.lm_head is None else self.lm_head
        return head(hidden) + self.final_logits_bias[...].astype(hidden.dtype)


FAMILY = Family(
    model_type="bart",
    config=BartConfig,
    networks={"backbone": BartModel, "seq2seq_lm": BartLM},
    prefix="model.",
    # `shared` is left behind where a config unties the tables: it is written but not used.
    heads=(r"lm_head\..*", r"final_logits_bias", r"classification_head\..*", r"shared\.weight"),
    buffers=(r"(encoder|decoder)\.version", r"(encoder|decoder)\.embed_positions\.weight"),
    tied={
        "lm_head.weight": "model.shared.weight",
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    zeros=("final_logits_bias",),
    ignored_fields=frozenset(
        [
            "add_bias_logits",
            "classif_dropout",
            "extra_pos_embeddings",
            "force_bos_token_to_be_generated",
            "init_std",
            "is_encoder_decoder",
            "num_hidden_layers",
            "save_step",
        ]
    ),
)
MBART_FAMILY = dataclasses.replace(FAMILY, model_type="mbart", config=MBartConfig)
MARIAN_FAMILY = dataclasses.replace(
    FAMILY,
    model_type="marian",
    config=MarianConfig,
    derived={r"(encoder|decoder)\.embed_positions\.weight": sinusoidal_positions},
)
