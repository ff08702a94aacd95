"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663), pre-norm encoder.

Rotary positions, gated feed-forward, and layers that look at a window between those that look at
everything. Reference implementation: transformers' `ModernBertModel`.
"""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.attention import attention, make_attention_mask
from ftjax.models.dropout import dropout, split_key
from ftjax.models.family import Family, with_num_labels
from ftjax.models.heads import mean_of_tokens
from ftjax.models.layers import (
    ACTIVATIONS,
    Activation,
    Compute,
    Output,
    apply_blocks,
    embed,
    embedding,
    layer_norm,
    linear,
    require,
    require_heads_divide,
)
from ftjax.models.rotary import Rotary, make_rotary, rotate
from ftjax.models.schema import (
    DERIVED,
    Count,
    Epsilon,
    Layers,
    Positive,
    Rate,
    Spread,
    Width,
    as_object,
)

LayerType = Literal["full_attention", "sliding_attention"]
LAYER_TYPES = get_args(LayerType)
FULL_ROTARY = Rotary(rope_theta=160000.0, max_position_embeddings=8192)
SLIDING_ROTARY = Rotary(rope_theta=10000.0, max_position_embeddings=8192)


@dataclasses.dataclass(frozen=True)
class ModernBertConfig:
    """The fields of config.json that ModernBERT's computation uses, with transformers' defaults.

    Without `layer_types`, every `global_attn_every_n_layers`-th layer from the first has full
    attention. `local_attention` is the whole width of the window: a token sees half of it to each
    side. `full_rotary` and `sliding_rotary` are `rope_parameters` by layer type.
    """

    vocab_size: Count = 50368
    hidden_size: Width = 768
    intermediate_size: Width = 1152
    num_hidden_layers: Layers = 22
    num_attention_heads: Width = 12
    hidden_activation: Activation = "gelu"
    max_position_embeddings: Count = 8192
    norm_eps: Epsilon = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    attention_dropout: Rate = 0.0
    layer_types: tuple[LayerType, ...] = DERIVED
    global_attn_every_n_layers: Width = 3
    full_rotary: Rotary = FULL_ROTARY
    sliding_rotary: Rotary = SLIDING_ROTARY
    local_attention: Count = 128
    embedding_dropout: Rate = 0.0
    mlp_bias: bool = False
    mlp_dropout: Rate = 0.0
    decoder_bias: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_dropout: Rate = 0.0
    classifier_bias: bool = False
    classifier_activation: Activation = "gelu"
    tie_word_embeddings: bool = True
    num_labels: Count = 2
    initializer_range: Spread = 0.02
    initializer_cutoff_factor: Positive | None = 2.0

    @staticmethod
    def from_fields(fields: dict) -> dict:
        """Rewrites what older versions of transformers wrote about layers and rotary bases."""
        fields = with_num_labels(fields)
        fields["layer_types"] = fields.get("layer_types") or None
        full = fields.pop("global_rope_theta", FULL_ROTARY.rope_theta)
        sliding = fields.pop("local_rope_theta", SLIDING_ROTARY.rope_theta)
        # None stood for the same base in both kinds of layer.
        thetas = (full, full if sliding is None else sliding)
        parameters = as_object("rope_parameters", fields.pop("rope_parameters", None))
        for layer_type in parameters:
            require("key of rope_parameters", layer_type, LAYER_TYPES)
        scaling = as_object("rope_scaling", fields.pop("rope_scaling", None))
        length = fields.get("max_position_embeddings", 8192)
        for name, layer_type, theta in zip(
            ("full_rotary", "sliding_rotary"), LAYER_TYPES, thetas, strict=True
        ):
            own = as_object(f"rope_parameters.{layer_type}", parameters.get(layer_type))
            values = {"rope_theta": theta} | own | scaling
            fields[name] = make_rotary(values, max_position_embeddings=length)
        return fields

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )
        if self.layer_types is None:
            every, layers = self.global_attn_every_n_layers, range(self.num_hidden_layers)
            types = tuple(LAYER_TYPES[bool(layer % every)] for layer in layers)
            object.__setattr__(self, "layer_types", types)
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"config.json: layer_types has {len(self.layer_types)} entries for "
                f"num_hidden_layers = {self.num_hidden_layers}."
            )
        for rotary in (self.full_rotary, self.sliding_rotary):
            rotary.check(self.hidden_size // self.num_attention_heads)

    @property
    def longest_row(self) -> int | None:
        """Most tokens of a row; None where there is no limit."""
        return self.full_rotary.longest_row


def _norm(config: ModernBertConfig, compute: Compute, rngs: nnx.Rngs):
    return layer_norm(
        config.hidden_size, config.norm_eps, compute, rngs=rngs, bias=config.norm_bias
    )


class ModernBertEmbeddings(nnx.Module):
    """Word embeddings, normalised."""

    def __init__(self, config: ModernBertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.tok_embeddings = embedding(config.vocab_size, config.hidden_size, compute, rngs=rngs)
        self.norm = _norm(config, compute, rngs)


class ModernBertAttention(nnx.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, config: ModernBertConfig, compute: Compute, *, rngs: nnx.Rngs):
        size, bias = config.hidden_size, config.attention_bias
        self.Wqkv = linear(size, 3 * size, compute, rngs=rngs, bias=bias)
        self.Wo = linear(size, size, compute, rngs=rngs, bias=bias)
        self.heads = config.num_attention_heads
        self.key_shape = (self.heads, size // self.heads)
        self.prefix = nnx.data(None)
        self.dropout_rate = config.attention_dropout

    def __call__(self, hidden, mask, tables, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        keys = split_key(key, 2)
        batch, length, size = hidden.shape
        split = self.Wqkv(hidden).reshape(batch, length, 3, self.heads, size // self.heads)
        mixed = attention(
            rotate(split[:, :, 0], tables),
            rotate(split[:, :, 1], tables),
            split[:, :, 2],
            prefix=self.prefix,
            mask=mask,
            dropout_rate=self.dropout_rate,
            dropout_key=keys[0],
        )
        return dropout(self.Wo(mixed.reshape(hidden.shape)), self.dropout_rate, keys[1])


class ModernBertMLP(nnx.Module):
    """Gated feed-forward layer (Shazeer 2020, GeGLU); input and gate are one projection."""

    def __init__(self, config: ModernBertConfig, compute: Compute, *, rngs: nnx.Rngs):
        size, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.Wi = linear(size, 2 * wide, compute, rngs=rngs, bias=bias)
        self.Wo = linear(wide, size, compute, rngs=rngs, bias=bias)
        self.activation = config.hidden_activation
        self.dropout_rate = config.mlp_dropout

    def __call__(self, hidden, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        wide, gate = jnp.split(self.Wi(hidden), 2, axis=-1)
        wide = ACTIVATIONS[self.activation](wide) * gate
        return self.Wo(dropout(wide, self.dropout_rate, key))


class ModernBertLayer(nnx.Module):
    """One pre-norm block; the first has no norm of its own, as the embeddings have one."""

    def __init__(self, config: ModernBertConfig, index: int, compute: Compute, *, rngs: nnx.Rngs):
        self.attn_norm = _norm(config, compute, rngs) if index else None
        self.attn = ModernBertAttention(config, compute, rngs=rngs)
        self.mlp_norm = _norm(config, compute, rngs)
        self.mlp = ModernBertMLP(config, compute, rngs=rngs)
        self.layer_type = config.layer_types[index]

    def __call__(self, hidden, masks, tables, key):
        """[batch, length, hidden] -> [batch, length, hidden]; masks and tables by layer type."""
        keys = split_key(key, 2)
        normed = hidden if self.attn_norm is None else self.attn_norm(hidden)
        mask, table = masks[self.layer_type], tables[self.layer_type]
        hidden = hidden + self.attn(normed, mask, table, keys[0])
        return hidden + self.mlp(self.mlp_norm(hidden), keys[1])


class ModernBertModel(nnx.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(
        self,
        config: ModernBertConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.embeddings = ModernBertEmbeddings(config, compute, rngs=rngs)
        self.layers = nnx.List(
            [
                ModernBertLayer(config, index, compute, rngs=rngs)
                for index in range(config.num_hidden_layers)
            ]
        )
        self.final_norm = _norm(config, compute, rngs)
        self.config = config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """Encodes a batch of token rows.

        Args:
            input_ids: int [batch, length].
            attention_mask: [batch, length], nonzero where a token is real.
            inputs_embeds: [batch, length, hidden], in place of `input_ids`.
            position_ids: int [batch, length], 0, 1, 2, ... by default. The window is counted in
                places of the row, not in these.
            segment_ids: int [batch, length] for packed rows: tokens see their own segment only.
            key: random key for dropout; None for evaluation.
        """
        config = self.config
        embed_key, blocks_key = split_key(key, 2)
        words = embed(self.embeddings.tok_embeddings, input_ids, inputs_embeds)
        length = words.shape[1]
        if position_ids is None:
            position_ids = jnp.arange(length)[None]
        head_dim = config.hidden_size // config.num_attention_heads
        tables = {
            "full_attention": config.full_rotary.tables(head_dim, position_ids),
            "sliding_attention": config.sliding_rotary.tables(head_dim, position_ids),
        }
        masks = {
            "full_attention": make_attention_mask(attention_mask, segment_ids=segment_ids),
            "sliding_attention": make_attention_mask(
                attention_mask,
                segment_ids=segment_ids,
                window=config.local_attention // 2,
                length=length,
            ),
        }
        hidden = dropout(self.embeddings.norm(words), config.embedding_dropout, embed_key)
        hidden, states = apply_blocks(
            self.layers,
            hidden,
            lambda block, hidden, key: block(hidden, masks, tables, key),
            key=blocks_key,
            compute=self.compute,
        )
        hidden = self.final_norm(hidden)
        return Output(hidden, (*states[:-1], hidden))


def _truncated_normal(config: ModernBertConfig, deviation: float) -> nnx.Initializer:
    cut = config.initializer_cutoff_factor
    cut = 3.0 if cut is None else cut
    return nnx.initializers.truncated_normal(deviation, lower=-cut, upper=cut)


class ModernBertPredictionHead(nnx.Module):
    """Dense, activation, norm: what comes before every published decoder or classifier."""

    def __init__(self, config: ModernBertConfig, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        deviation = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        self.dense = linear(
            size,
            size,
            compute,
            rngs=rngs,
            bias=config.classifier_bias,
            kernel_init=_truncated_normal(config, deviation),
        )
        self.norm = _norm(config, compute, rngs)
        self.activation = config.classifier_activation

    def __call__(self, hidden):
        """[..., hidden] -> [..., hidden]."""
        return self.norm(ACTIVATIONS[self.activation](self.dense(hidden)))


class ModernBertMaskedLM(nnx.Module):
    """The encoder with its masked-language-model head, tied to the embeddings or of its own."""

    def __init__(
        self,
        config: ModernBertConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        size, rows = config.hidden_size, config.vocab_size
        self.backbone = ModernBertModel(config, compute, rngs=rngs)
        self.head = ModernBertPredictionHead(config, compute, rngs=rngs)
        tied = config.tie_word_embeddings
        self.decoder = (
            None if tied else linear(size, rows, compute, rngs=rngs, bias=config.decoder_bias)
        )
        self.bias = (
            nnx.Param(jnp.zeros(rows, compute.param_dtype))
            if tied and config.decoder_bias
            else None
        )
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length, vocabulary]."""
        output = self.backbone(*arguments, **keywords)
        return output._replace(logits=self.logits(output.last_hidden_state))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of all words [..., vocabulary] at hidden states [..., hidden]."""
        hidden = self.head(hidden)
        if self.decoder is not None:
            return self.decoder(hidden)
        logits = self.backbone.embeddings.tok_embeddings.attend(hidden)
        return logits if self.bias is None else logits + self.bias[...].astype(logits.dtype)


class ModernBertTokenClassifier(nnx.Module):
    """The encoder with a classifier of each token."""

    def __init__(
        self,
        config: ModernBertConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = ModernBertModel(config, compute, rngs=rngs)
        self.head = ModernBertPredictionHead(config, compute, rngs=rngs)
        self.classifier = linear(
            config.hidden_size,
            config.num_labels,
            compute,
            rngs=rngs,
            kernel_init=_truncated_normal(config, config.hidden_size**-0.5),
        )
        self.config = config
        self.compute = compute

    def classify(self, hidden: jax.Array, key: jax.Array | None) -> jax.Array:
        """[..., hidden] -> [..., labels]."""
        return self.classifier(dropout(self.head(hidden), self.config.classifier_dropout, key))

    def __call__(self, *arguments, key: jax.Array | None = None, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length, labels]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(*arguments, key=backbone_key, **keywords)
        return output._replace(logits=self.classify(output.last_hidden_state, head_key))


def _span_finder(
    config: ModernBertConfig,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    *,
    rngs: nnx.Rngs,
) -> ModernBertTokenClassifier:
    """The scores of each token to be an answer's first or last: two classes, published so."""
    return ModernBertTokenClassifier(dataclasses.replace(config, num_labels=2), compute, rngs=rngs)


class ModernBertSequenceClassifier(ModernBertTokenClassifier):
    """The encoder with a classifier of the first token, or of the mean of the real tokens."""

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        **keywords,
    ) -> Output:
        """As the backbone, with `logits` [batch, labels]."""
        backbone_key, head_key = split_key(key, 2)
        output = self.backbone(input_ids, attention_mask, key=backbone_key, **keywords)
        features = self.pool(output, input_ids, attention_mask)
        return output._replace(logits=self.classify(features, head_key))

    def pool(
        self, output: Output, input_ids: jax.Array | None, attention_mask: jax.Array | None
    ) -> jax.Array:
        """What the head sees of the backbone's output, [batch, hidden]."""
        hidden = output.last_hidden_state
        if self.config.classifier_pooling != "mean":
            return hidden[:, 0]
        real = jnp.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        return mean_of_tokens(hidden, real)


FAMILY = Family(
    model_type="modernbert",
    config=ModernBertConfig,
    networks={
        "backbone": ModernBertModel,
        "masked_lm": ModernBertMaskedLM,
        "sequence_classification": ModernBertSequenceClassifier,
        "token_classification": ModernBertTokenClassifier,
        "question_answering": _span_finder,
    },
    prefix="model.",
    renames=(("bias", "decoder.bias"),),
    heads=(r"head\..*", r"decoder\..*", r"classifier\..*", r"qa_outputs\..*"),
    buffers=(r"(layers\.\d+\.attn\.)?rotary_emb\..*",),
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    ignored_fields=frozenset(
        [
            "cls_token_id",
            "deterministic_flash_attn",
            # Written by older versions; `norm_eps` and rotary positions are what is used.
            "layer_norm_eps",
            "position_embedding_type",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_pred_ignore_index",
            "sparse_prediction",
        ]
    ),
)
