"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805), post-norm encoder.

Reference implementation: transformers' `BertModel`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.attention import attention, make_attention_mask
from ftjax.models.dropout import dropout, split_key
from ftjax.models.encoder_heads import (
    MaskedLM,
    PooledClassifier,
    SpanFinder,
    TokenClassifier,
    head_linear,
)
from ftjax.models.family import Family, with_num_labels
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
    require_heads_divide,
    require_positions,
)
from ftjax.models.schema import Count, Epsilon, Layers, Natural, Rate, Spread, Width


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of config.json that BERT's computation uses, with transformers' defaults.

    `classifier_dropout` is `hidden_dropout_prob` where config.json has none or null.
    """

    vocab_size: Count = 30522
    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    intermediate_size: Width = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    max_position_embeddings: Count = 512
    type_vocab_size: Natural = 2
    layer_norm_eps: Epsilon = 1e-12
    position_embedding_type: Literal["absolute"] = "absolute"
    tie_word_embeddings: bool = True
    classifier_dropout: Rate = 0.1
    num_labels: Count = 2
    initializer_range: Spread = 0.02

    @staticmethod
    def from_fields(fields: dict) -> dict:
        """Fills in what config.json leaves to other fields."""
        fields = with_num_labels(fields)
        if fields.get("classifier_dropout") is None:
            fields["classifier_dropout"] = fields.get("hidden_dropout_prob", 0.1)
        return fields

    def __post_init__(self):
        require_heads_divide(
            "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
        )

    @property
    def embedding_width(self) -> int:
        """Features of the embedding tables."""
        return self.hidden_size

    @property
    def projects_embeddings(self) -> bool:
        """Whether a layer stands between the embeddings and the encoder."""
        return self.embedding_width != self.hidden_size

    @property
    def longest_row(self) -> int | None:
        """How many tokens the table of positions suffices for."""
        return self.max_position_embeddings

    @property
    def attention_output_dropout(self) -> float:
        """Dropout rate of the attention's output, before the residual is added."""
        return self.hidden_dropout_prob

    @property
    def feed_forward_output_dropout(self) -> float:
        """Dropout rate of the feed-forward layer's output, before the residual is added."""
        return self.hidden_dropout_prob

    @property
    def token_classifier_dropout(self) -> float:
        """Dropout rate before the token classifier."""
        return self.classifier_dropout

    @property
    def span_dropout(self) -> float:
        """Dropout rate before the scores of an answer's ends."""
        return 0.0


class BertEmbeddings(nnx.Module):
    """Word, position and (where there are any) token-type embeddings, added and normalised."""

    def __init__(self, config: BertConfig, compute: Compute, *, rngs: nnx.Rngs):
        size = config.embedding_width
        self.word_embeddings = embedding(config.vocab_size, size, compute, rngs=rngs)
        self.position_embeddings = embedding(
            config.max_position_embeddings, size, compute, rngs=rngs
        )
        self.token_type_embeddings = (
            embedding(config.type_vocab_size, size, compute, rngs=rngs)
            if config.type_vocab_size
            else None
        )
        self.LayerNorm = layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, words, token_type_ids, position_ids, key):
        """Words [batch, length, width], ids int [batch or 1, length]; [batch, length, width]."""
        hidden = words + self.position_embeddings(position_ids)
        if self.token_type_embeddings is not None:
            types = jnp.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            hidden = hidden + self.token_type_embeddings(types)
        elif token_type_ids is not None:
            raise ValueError("This network has no token types; leave token_type_ids out.")
        return dropout(self.LayerNorm(hidden), self.dropout_rate, key)


class BertSelfAttention(nnx.Module):
    """Query, key and value projections and the attention between them."""

    def __init__(self, config: BertConfig, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.query = linear(size, size, compute, rngs=rngs)
        self.key = linear(size, size, compute, rngs=rngs)
        self.value = linear(size, size, compute, rngs=rngs)
        self.heads = config.num_attention_heads
        self.key_shape = (self.heads, size // self.heads)
        self.prefix = nnx.data(None)
        self.dropout_rate = config.attention_probs_dropout_prob

    def __call__(self, hidden, mask, bias, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        batch, length, size = hidden.shape
        split = (batch, length, self.heads, size // self.heads)
        mixed = attention(
            self.query(hidden).reshape(split),
            self.key(hidden).reshape(split),
            self.value(hidden).reshape(split),
            prefix=self.prefix,
            mask=mask,
            bias=bias,
            dropout_rate=self.dropout_rate,
            dropout_key=key,
        )
        return mixed.reshape(batch, length, size)


class BertResidualOutput(nnx.Module):
    """Dense, dropout, and the norm of the sum with the residual."""

    def __init__(
        self,
        inputs: int,
        dropout_rate: float,
        config: BertConfig,
        compute: Compute,
        *,
        rngs: nnx.Rngs,
    ):
        self.dense = linear(inputs, config.hidden_size, compute, rngs=rngs)
        self.LayerNorm = layer_norm(config.hidden_size, config.layer_norm_eps, compute, rngs=rngs)
        self.dropout_rate = dropout_rate

    def __call__(self, hidden, residual, key):
        """[batch, length, inputs], [batch, length, hidden] -> [batch, length, hidden]."""
        return self.LayerNorm(dropout(self.dense(hidden), self.dropout_rate, key) + residual)


class BertAttention(nnx.Module):
    """Self-attention with its residual output; attribute names are the checkpoint's."""

    def __init__(self, config: BertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.self = BertSelfAttention(config, compute, rngs=rngs)
        self.output = BertResidualOutput(
            config.hidden_size, config.attention_output_dropout, config, compute, rngs=rngs
        )


class BertIntermediate(nnx.Module):
    """The widening half of the feed-forward layer."""

    def __init__(self, config: BertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.dense = linear(config.hidden_size, config.intermediate_size, compute, rngs=rngs)


class BertLayer(nnx.Module):
    """One post-norm encoder block."""

    def __init__(self, config: BertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.attention = BertAttention(config, compute, rngs=rngs)
        self.intermediate = BertIntermediate(config, compute, rngs=rngs)
        self.output = BertResidualOutput(
            config.intermediate_size,
            config.feed_forward_output_dropout,
            config,
            compute,
            rngs=rngs,
        )
        self.activation = config.hidden_act

    def __call__(self, hidden, mask, bias, key):
        """[batch, length, hidden] -> [batch, length, hidden]; the bias is added to the scores."""
        keys = split_key(key, 3)
        mixed = self.attention.self(hidden, mask, bias, keys[0])
        hidden = self.attention.output(mixed, hidden, keys[1])
        wide = ACTIVATIONS[self.activation](self.intermediate.dense(hidden))
        return self.output(wide, hidden, keys[2])


class BertEncoder(nnx.Module):
    """The stack of blocks."""

    def __init__(self, config: BertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.layer = nnx.List(
            [BertLayer(config, compute, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def blocks(self) -> Sequence[BertLayer]:
        """The blocks in the order in which they are applied."""
        return self.layer

    def score_bias(self, length: int) -> jax.Array | None:
        """What is added to all scores of attention, [1, heads, length, length]; nothing here."""
        return None


class BertPooler(nnx.Module):
    """tanh(dense(first token))."""

    def __init__(self, config: BertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.dense = head_linear(config.hidden_size, config, compute, rngs=rngs)


class BertModel(nnx.Module):
    """Embeddings, blocks and, if asked for, the checkpoint's pooler.

    Attributes:
        encoder_class: what holds the blocks.
    """

    encoder_class = BertEncoder

    def __init__(
        self,
        config: BertConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
        pooler: bool = False,
    ):
        width, size = config.embedding_width, config.hidden_size
        self.embeddings = BertEmbeddings(config, compute, rngs=rngs)
        self.embeddings_project = (
            linear(width, size, compute, rngs=rngs) if config.projects_embeddings else None
        )
        self.encoder = self.encoder_class(config, compute, rngs=rngs)
        self.pooler = BertPooler(config, compute, rngs=rngs) if pooler else None
        self.config = config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """Encodes a batch of token rows.

        Args:
            input_ids: int [batch, length].
            attention_mask: [batch, length], nonzero where a token is real.
            inputs_embeds: [batch, length, embedding width], in place of `input_ids`.
            token_type_ids: int [batch, length], 0 by default.
            position_ids: int [batch, length]; by default as the family counts.
            segment_ids: int [batch, length] for packed rows: tokens see their own segment only.
            key: random key for dropout; None for evaluation.

        Raises:
            ValueError: rows longer than the table of positions, or position ids beyond it.
        """
        embed_key, blocks_key = split_key(key, 2)
        words = embed(self.embeddings.word_embeddings, input_ids, inputs_embeds)
        if position_ids is None:
            require_positions(words.shape[1], self.config.longest_row)
            position_ids = self.positions(input_ids, words.shape[1])
        else:
            table = self.config.max_position_embeddings
            require_positions(words.shape[1], table, position_ids)
        mask = make_attention_mask(attention_mask, segment_ids=segment_ids)
        bias = self.encoder.score_bias(words.shape[1])
        hidden = self.embeddings(words, token_type_ids, position_ids, embed_key)
        if self.embeddings_project is not None:
            hidden = self.embeddings_project(hidden)
        hidden, states = apply_blocks(
            self.encoder.blocks(),
            hidden,
            lambda block, hidden, key: block(hidden, mask, bias, key),
            key=blocks_key,
            compute=self.compute,
        )
        pooled = jnp.tanh(self.pooler.dense(hidden[:, 0])) if self.pooler is not None else None
        return Output(hidden, states, pooled)

    def positions(self, input_ids: jax.Array | None, length: int) -> jax.Array:
        """Position ids [1, length]: 0, 1, 2, ..."""
        return jnp.arange(length)[None]


FAMILY = Family(
    model_type="bert",
    config=BertConfig,
    networks={
        "backbone": BertModel,
        "pooled": functools.partial(BertModel, pooler=True),
        "masked_lm": functools.partial(MaskedLM, BertModel),
        "sequence_classification": functools.partial(PooledClassifier, BertModel),
        "token_classification": functools.partial(TokenClassifier, BertModel),
        "question_answering": functools.partial(SpanFinder, BertModel),
    },
    prefix="bert.",
    renames=(
        ("head.dense", "cls.predictions.transform.dense"),
        ("head.norm", "cls.predictions.transform.LayerNorm"),
        ("head.decoder", "cls.predictions.decoder"),
        ("head.bias", "cls.predictions.bias"),
    ),
    heads=(
        r"pooler\..*",
        # Apart: where the decoder is untied it has its own bias, and this one is not used.
        r"cls\.predictions\.(?!bias$).*",
        r"cls\.predictions\.bias",
        r"cls\.seq_relationship\..*",
        r"classifier\..*",
        r"qa_outputs\..*",
    ),
    buffers=(r"embeddings\.position_ids",),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
