"""DeBERTa-v2 and -v3 (He et al. 2021, https://arxiv.org/abs/2006.03654 and 2111.09543).

BERT's post-norm encoder, whose attention scores add what a token makes of a distance (c2p) and what
a distance makes of a token (p2c). Reference implementation: transformers' `DebertaV2Model`.
"""

import dataclasses
import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftjax.models.attention import attention, make_attention_mask
from ftjax.models.bert import BertConfig, BertIntermediate, BertResidualOutput
from ftjax.models.dropout import dropout, split_key
from ftjax.models.encoder_heads import MaskedLMHead, SequenceClassifier, SpanFinder, TokenClassifier
from ftjax.models.family import Family, with_num_labels
from ftjax.models.layers import (
    ACTIVATIONS,
    Activation,
    Compute,
    Network,
    Output,
    apply_blocks,
    embed,
    embedding,
    layer_norm,
    linear,
    require,
    require_heads_divide,
    require_positions,
)
from ftjax.models.schema import Bounds, Count, Epsilon, Layers, Natural, Rate, Width


@dataclasses.dataclass(frozen=True)
class DebertaV2Config(BertConfig):
    """The fields of config.json that DeBERTa-v2's computation uses, with transformers' defaults.

    `classifier_dropout` is config.json's `cls_dropout`.
    """

    vocab_size: Count = 128100
    hidden_size: Width = 1536
    num_hidden_layers: Layers = 24
    num_attention_heads: Width = 24
    intermediate_size: Width = 6144
    type_vocab_size: Natural = 0
    layer_norm_eps: Epsilon = 1e-7
    embedding_size: Width | None = None
    relative_attention: bool = False
    max_relative_positions: Annotated[int, Bounds(-1, 2**20)] = -1
    position_buckets: Annotated[int, Bounds(-1, 2**20)] = -1
    position_biased_input: bool = True
    pos_att_type: tuple[Literal["c2p", "p2c"], ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: Annotated[int, Bounds(0, 99)] = 0
    conv_groups: Width = 1
    conv_act: Activation = "tanh"
    pooler_dropout: Rate = 0.0
    pooler_hidden_act: Activation = "gelu"
    pooler_hidden_size: Width | None = None
    attention_head_size: Width | None = None
    legacy: bool = True

    @staticmethod
    def from_fields(fields: dict) -> dict:
        """Splits `pos_att_type` as older versions wrote it, and fills in the dropout rate."""
        fields = with_num_labels(fields)
        types = fields.get("pos_att_type") or []
        if isinstance(types, str):
            types = [part.strip() for part in types.lower().split("|")]
        rate = fields.pop("cls_dropout", None)
        rate = fields.get("hidden_dropout_prob", 0.1) if rate is None else rate
        return fields | {"pos_att_type": types, "classifier_dropout": rate}

    def __post_init__(self):
        super().__post_init__()
        require("pooler_hidden_size", self.pooler_hidden_size, (None, self.hidden_size))
        head_size = self.hidden_size // self.num_attention_heads
        require("attention_head_size", self.attention_head_size, (None, head_size))
        require_heads_divide("hidden_size", self.hidden_size, "conv_groups", self.conv_groups)
        if self.conv_kernel_size > 0 and self.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"config.json: conv_kernel_size = {self.conv_kernel_size} must be odd, or 0."
            )
        if not self.legacy and self.embedding_width != self.hidden_size:
            raise ValueError(
                "config.json: legacy = false needs embedding_size = hidden_size, since its head "
                "compares hidden states with the embeddings themselves."
            )
        if self.position_buckets == 1:
            raise ValueError(
                "config.json: position_buckets = 1 cannot be halved; use 2 or more, or -1 for none."
            )

    @property
    def embedding_width(self) -> int:
        """Features of the embedding tables."""
        return self.embedding_size or self.hidden_size

    @property
    def longest_row(self) -> int | None:
        """How many tokens the table of positions suffices for; None where there is none."""
        return self.max_position_embeddings if self.position_biased_input else None

    @property
    def token_classifier_dropout(self) -> float:
        """Dropout rate before the token classifier."""
        return self.hidden_dropout_prob

    @property
    def distances(self) -> int:
        """How far apart two tokens may be before all distances are one."""
        given = self.max_relative_positions
        return given if given > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Half the number of relative embeddings."""
        return self.position_buckets if self.position_buckets > 0 else self.distances

    @property
    def norms_relative_embeddings(self) -> bool:
        """Whether the relative embeddings are normalised."""
        return "layer_norm" in [part.strip() for part in self.norm_rel_ebd.lower().split("|")]


def relative_index(config: DebertaV2Config, length: int) -> np.ndarray:
    """Which relative embedding stands for query minus key, int [length, length].

    Distances beyond half the buckets share logarithmically growing ones. Float32 is rounded where
    the reference rounds, since a distance on a boundary falls to one side by its last bit.

    Raises:
        ValueError: distances occur that are neither in the closer half of the buckets nor in reach
            of the shared ones.
    """
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    middle = config.position_buckets // 2
    if config.position_buckets > 0 and length - 1 > middle:
        if config.distances - 1 <= middle:
            raise ValueError(
                f"A row of {length} tokens is longer than this network's position_buckets = "
                f"{config.position_buckets} and distances of {config.distances} allow; shorten the "
                f"texts to {middle + 1} tokens."
            )
        far = np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle)
        widest = np.log(np.float32((config.distances - 1) / middle))
        bucket = np.ceil(np.log(far) / widest * np.float32(middle - 1)) + middle
        bucket = np.sign(distance) * bucket.astype(np.int64)
        distance = np.where(np.abs(distance) <= middle, distance, bucket)
    return np.clip(distance + config.span, 0, 2 * config.span - 1)


class DebertaV2Embeddings(nnx.Module):
    """Word and, where there are any, position and type embeddings; projected and normalised."""

    def __init__(self, config: DebertaV2Config, compute: Compute, *, rngs: nnx.Rngs):
        width, size = config.embedding_width, config.hidden_size
        table = functools.partial(embedding, features=width, compute=compute, rngs=rngs)
        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = (
            table(config.max_position_embeddings) if config.position_biased_input else None
        )
        self.token_type_embeddings = (
            table(config.type_vocab_size) if config.type_vocab_size else None
        )
        self.embed_proj = (
            linear(width, size, compute, rngs=rngs, bias=False) if width != size else None
        )
        self.LayerNorm = layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, words, token_type_ids, position_ids, attention_mask, key):
        """Words [batch, length, width] -> [batch, length, hidden], zero at padding."""
        hidden = words
        if self.position_embeddings is not None:
            hidden = hidden + self.position_embeddings(position_ids)
        if self.token_type_embeddings is not None:
            types = jnp.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            hidden = hidden + self.token_type_embeddings(types)
        if self.embed_proj is not None:
            hidden = self.embed_proj(hidden)
        hidden = self.LayerNorm(hidden)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None].astype(hidden.dtype)
        return dropout(hidden, self.dropout_rate, key)


class DisentangledSelfAttention(nnx.Module):
    """Attention by content and relative position (He et al. 2021, eq. 4)."""

    def __init__(self, config: DebertaV2Config, compute: Compute, *, rngs: nnx.Rngs):
        size, kinds = config.hidden_size, config.pos_att_type
        projection = functools.partial(linear, size, size, compute, rngs=rngs)
        own = config.relative_attention and not config.share_att_key
        self.query_proj = projection()
        self.key_proj = projection()
        self.value_proj = projection()
        self.pos_key_proj: Network = projection() if own and "c2p" in kinds else None
        self.pos_query_proj: Network = projection() if own and "p2c" in kinds else None
        heads = config.num_attention_heads
        self.key_shape = (heads, config.hidden_size // heads)
        self.prefix = nnx.data(None)
        self.config = config

    def __call__(self, hidden, relative, index, mask, key):
        """Hidden [batch, length, hidden], relative embeddings [2 span, hidden] or None."""
        config = self.config
        keys = split_key(key, 2)
        batch, length, size = hidden.shape
        heads = (config.num_attention_heads, size // config.num_attention_heads)
        scale = (heads[1] * (1 + len(set(config.pos_att_type)))) ** -0.5
        queries = self.query_proj(hidden).reshape(batch, length, *heads)
        contents = self.key_proj(hidden).reshape(batch, length, *heads)
        bias = None
        if relative is not None and config.pos_att_type:
            relative = dropout(relative, config.hidden_dropout_prob, keys[0])
            bias = scale * self._relative_scores(queries, contents, relative, index)
        mixed = attention(
            queries,
            contents,
            self.value_proj(hidden).reshape(batch, length, *heads),
            prefix=self.prefix,
            mask=mask,
            bias=bias,
            scale=scale,
            dropout_rate=config.attention_probs_dropout_prob,
            dropout_key=keys[1],
        )
        return mixed.reshape(hidden.shape)

    def _relative_scores(self, queries, contents, relative, index):
        """[batch, heads, length, length]: c2p + p2c, before scaling."""
        heads = queries.shape[2:]
        scores = 0.0
        if "c2p" in self.config.pos_att_type:
            places = (self.pos_key_proj or self.key_proj)(relative)
            products = jnp.einsum("bqhd,rhd->bhqr", queries, places.reshape(-1, *heads))
            scores += jnp.take_along_axis(products, index[None, None], axis=-1)
        if "p2c" in self.config.pos_att_type:
            places = (self.pos_query_proj or self.query_proj)(relative)
            products = jnp.einsum("bkhd,rhd->bhkr", contents, places.reshape(-1, *heads))
            gathered = jnp.take_along_axis(products, index.T[None, None], axis=-1)
            scores += jnp.swapaxes(gathered, -1, -2)
        return scores


class DebertaV2Attention(nnx.Module):
    """Self-attention with its residual output; attribute names are the checkpoint's."""

    def __init__(self, config: DebertaV2Config, compute: Compute, *, rngs: nnx.Rngs):
        self.self = DisentangledSelfAttention(config, compute, rngs=rngs)
        self.output = BertResidualOutput(
            config.hidden_size, config.hidden_dropout_prob, config, compute, rngs=rngs
        )


class DebertaV2Layer(nnx.Module):
    """One post-norm block."""

    def __init__(self, config: DebertaV2Config, compute: Compute, *, rngs: nnx.Rngs):
        self.attention = DebertaV2Attention(config, compute, rngs=rngs)
        self.intermediate = BertIntermediate(config, compute, rngs=rngs)
        self.output = BertResidualOutput(
            config.intermediate_size, config.hidden_dropout_prob, config, compute, rngs=rngs
        )
        self.activation = config.hidden_act

    def __call__(self, hidden, relative, index, mask, key):
        """[batch, length, hidden] -> [batch, length, hidden]."""
        keys = split_key(key, 3)
        mixed = self.attention.self(hidden, relative, index, mask, keys[0])
        hidden = self.attention.output(mixed, hidden, keys[1])
        wide = ACTIVATIONS[self.activation](self.intermediate.dense(hidden))
        return self.output(wide, hidden, keys[2])


class DebertaV2Convolution(nnx.Module):
    """A convolution of the embeddings, added to what the first block gives."""

    def __init__(self, config: DebertaV2Config, compute: Compute, *, rngs: nnx.Rngs):
        side = (config.conv_kernel_size - 1) // 2
        self.conv = nnx.Conv(
            config.hidden_size,
            config.hidden_size,
            kernel_size=(config.conv_kernel_size,),
            padding=[(side, side)],
            feature_group_count=config.conv_groups,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            rngs=rngs,
        )
        self.LayerNorm = layer_norm(config.hidden_size, config.layer_norm_eps, compute, rngs=rngs)
        self.activation = config.conv_act
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, embedded, hidden, attention_mask, key):
        """Two [batch, length, hidden] -> one, zero at padding."""
        real = 1.0 if attention_mask is None else attention_mask[..., None].astype(hidden.dtype)
        mixed = dropout(self.conv(embedded) * real, self.dropout_rate, key)
        return self.LayerNorm(hidden + ACTIVATIONS[self.activation](mixed)) * real


class DebertaV2Encoder(nnx.Module):
    """The blocks, the relative embeddings they share and, in some, the convolution."""

    def __init__(self, config: DebertaV2Config, compute: Compute, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.layer = nnx.List(
            [DebertaV2Layer(config, compute, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.rel_embeddings = (
            embedding(2 * config.span, size, compute, rngs=rngs)
            if config.relative_attention
            else None
        )
        self.LayerNorm = (
            layer_norm(size, config.layer_norm_eps, compute, rngs=rngs)
            if config.norms_relative_embeddings
            else None
        )
        self.conv = (
            DebertaV2Convolution(config, compute, rngs=rngs)
            if config.conv_kernel_size > 0
            else None
        )
        self.dtype = compute.dtype

    def relative(self) -> jax.Array | None:
        """The relative embeddings [2 span, hidden], or None without relative attention."""
        if self.rel_embeddings is None:
            return None
        table = self.rel_embeddings.embedding[...].astype(self.dtype)
        return table if self.LayerNorm is None else self.LayerNorm(table)


class DebertaV2Model(nnx.Module):
    """Embeddings and blocks."""

    def __init__(
        self,
        config: DebertaV2Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.embeddings = DebertaV2Embeddings(config, compute, rngs=rngs)
        self.encoder = DebertaV2Encoder(config, compute, rngs=rngs)
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
            token_type_ids: int [batch, length], 0 by default; of no effect where the checkpoint
                has no token types, as in the reference implementation.
            position_ids: int [batch, length], 0, 1, 2, ... by default; of absolute positions.
            segment_ids: int [batch, length] for packed rows: tokens see their own segment only.
            key: random key for dropout; None for evaluation.

        Raises:
            ValueError: packed rows for a checkpoint whose convolution would mix their texts; or
                rows longer than the table of absolute positions, if there is one.
        """
        if segment_ids is not None and self.encoder.conv is not None:
            raise ValueError(
                "This DeBERTa-v2 has a convolution, which would mix texts of a row; choose another."
            )
        keys = split_key(key, 4)
        words = embed(self.embeddings.word_embeddings, input_ids, inputs_embeds)
        length = words.shape[1]
        require_positions(length, self.config.longest_row, position_ids)
        if position_ids is None:
            position_ids = jnp.arange(length)[None]
        mask = make_attention_mask(attention_mask, segment_ids=segment_ids)
        relative = self.encoder.relative()
        index = None
        if relative is not None:
            index = jnp.asarray(relative_index(self.config, length))

        def call(block, hidden, key):
            return block(hidden, relative, index, mask, key)

        blocks, compute = self.encoder.layer, self.compute
        embedded = self.embeddings(words, token_type_ids, position_ids, attention_mask, keys[0])
        if self.encoder.conv is None:
            hidden, states = apply_blocks(blocks, embedded, call, key=keys[1], compute=compute)
            return Output(hidden, states)
        hidden, _ = apply_blocks(blocks[:1], embedded, call, key=keys[1], compute=compute)
        hidden = self.encoder.conv(embedded, hidden, attention_mask, keys[2])
        hidden, states = apply_blocks(blocks[1:], hidden, call, key=keys[3], compute=compute)
        return Output(hidden, (embedded, *states))


class DebertaV2MaskedLM(nnx.Module):
    """The encoder with its masked-language-model head: BERT's, or the later `lm_predictions`."""

    def __init__(
        self,
        config: DebertaV2Config,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = DebertaV2Model(config, compute, rngs=rngs)
        if config.legacy:
            self.head = MaskedLMHead(config, config.hidden_act, compute, rngs=rngs)
        else:
            tied = dataclasses.replace(config, tie_word_embeddings=True)
            self.lm_head = MaskedLMHead(tied, config.hidden_act, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length, vocabulary]."""
        output = self.backbone(*arguments, **keywords)
        return output._replace(logits=self.logits(output.last_hidden_state))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of all words [..., vocabulary] at hidden states [..., hidden]."""
        head = self.head if self.config.legacy else self.lm_head
        return head(hidden, self.backbone.embeddings.word_embeddings)


def _sequence_classifier(
    config: DebertaV2Config,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    *,
    rngs: nnx.Rngs,
) -> SequenceClassifier:
    return SequenceClassifier(
        DebertaV2Model,
        config,
        compute,
        rngs=rngs,
        activation=config.pooler_hidden_act,
        first_dropout=config.pooler_dropout,
    )


FAMILY = Family(
    model_type="deberta-v2",
    config=DebertaV2Config,
    networks={
        "backbone": DebertaV2Model,
        "masked_lm": DebertaV2MaskedLM,
        "sequence_classification": _sequence_classifier,
        "token_classification": functools.partial(TokenClassifier, DebertaV2Model),
        "question_answering": functools.partial(SpanFinder, DebertaV2Model),
    },
    prefix="deberta.",
    renames=(
        ("head.dense", "cls.predictions.transform.dense"),
        ("head.norm", "cls.predictions.transform.LayerNorm"),
        ("head.decoder", "cls.predictions.decoder"),
        ("head.bias", "cls.predictions.bias"),
        ("lm_head.dense", "lm_predictions.lm_head.dense"),
        ("lm_head.norm", "lm_predictions.lm_head.LayerNorm"),
        ("lm_head.bias", "lm_predictions.lm_head.bias"),
        ("classifier.dense", "pooler.dense"),
        ("classifier.out_proj", "classifier"),
    ),
    heads=(
        # Apart: where the decoder is untied it has its own bias, and this one is not used.
        r"cls\.predictions\.(?!bias$).*",
        r"cls\.predictions\.bias",
        r"lm_predictions\..*",
        r"mask_predictions\..*",
        r"pooler\..*",
        r"classifier\..*",
        r"qa_outputs\..*",
        # Published also where position_biased_input says that they are of no use.
        r"embeddings\.position_embeddings\..*",
    ),
    buffers=(r"embeddings\.position_ids",),
    tied={
        "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
