"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), DistilGPT-2.

Reference implementation: transformers' `GPT2LMHeadModel`.
"""

import dataclasses
from typing import Any

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
    Output,
    embed,
    embedding,
    layer_norm,
    linear,
    require_positions,
)
from ftjax.models.schema import Count, Epsilon, Layers, Rate, Spread, Token, Width


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The fields of config.json that GPT-2's computation uses, with transformers' defaults.

    `num_labels`, `pad_token_id` and `initializer_range` matter to the classifier only.
    """

    vocab_size: Count = 50257
    n_positions: Count = 1024
    n_embd: Width = 768
    n_layer: Layers = 12
    n_head: Width = 12
    n_inner: Width | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: Rate = 0.1
    embd_pdrop: Rate = 0.1
    attn_pdrop: Rate = 0.1
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: Token | None = None
    num_labels: Count = 2
    initializer_range: Spread = 0.02

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(
                f"config.json: n_embd = {self.n_embd} is no multiple of n_head = {self.n_head}."
            )

    from_fields = staticmethod(with_num_labels)

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states, by the name the other families have for it."""
        return self.n_embd

    @property
    def max_position_embeddings(self) -> int:
        """The number of positions, by the name the other families have for it."""
        return self.n_positions

    @property
    def longest_row(self) -> int:
        """How many tokens the table of positions suffices for."""
        return self.n_positions

    @property
    def logit_soft_cap(self) -> None:
        """Logits are not capped."""
        return None


class GPT2Attention(nnx.Module):
    """Self-attention; queries, keys and values are projected as one."""

    def __init__(self, config: GPT2Config, layer: int, compute: Compute, *, rngs: nnx.Rngs):
        size = config.n_embd
        self.c_attn = linear(size, 3 * size, compute, rngs=rngs)
        self.c_proj = linear(size, size, compute, rngs=rngs)
        self.heads = config.n_head
        self.key_shape = (self.heads, size // self.heads)
        self.prefix = nnx.data(None)
        self.scale = (size // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.dropout_rate = config.attn_pdrop

    def __call__(self, hidden, context: Context, key, cache: LayerCache | None):
        """[batch, length, hidden] -> ([batch, length, hidden], the cache with these tokens)."""
        split = (*hidden.shape[:2], self.heads, -1)
        query, keys, values = (
            part.reshape(split) for part in jnp.split(self.c_attn(hidden), 3, axis=-1)
        )
        if cache is not None:
            cache = append(cache, keys, values, context.start)
            keys, values = cache["key"], cache["value"]
        mixed = attention(
            query,
            keys,
            values,
            prefix=self.prefix,
            mask=context.masks[None],
            scale=self.scale,
            dropout_rate=self.dropout_rate,
            dropout_key=key,
        )
        return self.c_proj(mixed.reshape(hidden.shape)), cache


class GPT2MLP(nnx.Module):
    """The feed-forward layer."""

    def __init__(self, config: GPT2Config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.n_embd
        wide = 4 * size if config.n_inner is None else config.n_inner
        self.c_fc = linear(size, wide, compute, rngs=rngs)
        self.c_proj = linear(wide, size, compute, rngs=rngs)
        self.activation = config.activation_function

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        return self.c_proj(ACTIVATIONS[self.activation](self.c_fc(hidden)))


class GPT2Block(nnx.Module):
    """One pre-norm block."""

    def __init__(self, config: GPT2Config, layer: int, compute: Compute, *, rngs: nnx.Rngs):
        self.ln_1 = layer_norm(config.n_embd, config.layer_norm_epsilon, compute, rngs=rngs)
        self.attn = GPT2Attention(config, layer, compute, rngs=rngs)
        self.ln_2 = layer_norm(config.n_embd, config.layer_norm_epsilon, compute, rngs=rngs)
        self.mlp = GPT2MLP(config, compute, rngs=rngs)
        self.dropout_rate = config.resid_pdrop

    def __call__(self, hidden, context: Context, key, cache: LayerCache | None = None):
        """[batch, length, hidden] -> ([batch, length, hidden], the cache with these tokens)."""
        keys = split_key(key, 3)
        mixed, cache = self.attn(self.ln_1(hidden), context, keys[0], cache)
        hidden = hidden + dropout(mixed, self.dropout_rate, keys[1])
        return hidden + dropout(self.mlp(self.ln_2(hidden)), self.dropout_rate, keys[2]), cache


class GPT2Model(nnx.Module):
    """Token and position embeddings, blocks and the final norm."""

    def __init__(
        self,
        config: GPT2Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.wte = embedding(config.vocab_size, config.n_embd, compute, rngs=rngs)
        self.wpe = embedding(config.n_positions, config.n_embd, compute, rngs=rngs)
        self.h = nnx.List(
            [GPT2Block(config, layer, compute, rngs=rngs) for layer in range(config.n_layer)]
        )
        self.ln_f = layer_norm(config.n_embd, config.layer_norm_epsilon, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    @property
    def token_embedding(self) -> nnx.Embed:
        """The table [vocabulary, hidden] that a tied head shares."""
        return self.wte

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
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
            token_type_ids: int [batch, length], tokens whose embeddings are added.
            position_ids: int [batch, length]; 0, 1, 2, ... by default, with a cache from its index.
            segment_ids: int [batch, length] for packed rows: tokens see their own segment only;
                `position_ids` should start anew in each segment.
            cache: from `init_cache` or an earlier call: these tokens follow the ones in it.
            key: random key for dropout; None for evaluation, and with a cache.

        Raises:
            ValueError: more tokens than positions, a mask that does not fit the cache, or a cache
                where none can be used.
        """
        embed_key, blocks_key = split_key(key, 2)
        hidden = embed(self.wte, input_ids, inputs_embeds)
        length = hidden.shape[1]
        if cache is None:
            require_positions(length, self.config.longest_row, position_ids)
        if position_ids is None:
            position_ids = default_positions(length, cache)
        hidden = hidden + self.wpe(position_ids)
        if token_type_ids is not None:
            hidden = hidden + self.wte(token_type_ids)
        masks = decoder_masks({None}, length, attention_mask, segment_ids, cache)
        return run_decoder(
            self.h,
            self.ln_f,
            dropout(hidden, self.config.embd_pdrop, embed_key),
            Context(masks, {}, 0 if cache is None else cache["index"]),
            cache,
            key=blocks_key,
            compute=self.compute,
        )

    def init_cache(self, batch: int, max_length: int, dtype: Any = jnp.float32) -> dict:
        """An empty cache (ftjax/models/cache.py) with room for `max_length` tokens per row."""
        config = self.config
        head_dim = config.n_embd // config.n_head
        return empty_cache(config.n_layer, batch, max_length, config.n_head, head_dim, dtype)


FAMILY = Family(
    model_type="gpt2",
    config=GPT2Config,
    networks=decoder_networks(GPT2Model),
    prefix="transformer.",
    heads=(r"lm_head\..*", r"score\..*", r"multiple_choice_head\..*"),
    buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    untransposed=r".*\.(c_attn|c_proj|c_fc)",
    tied={"lm_head.weight": "transformer.wte.weight"},
    ignored_fields=frozenset(
        [
            # Where products are rounded in half precision; here scores are always float32.
            "reorder_and_upcast_attn",
            # Older names, and what GPT-1 had.
            "n_ctx",
            "n_special",
            "predict_special_tokens",
            # Of a head that is not loaded.
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ]
    ),
)
