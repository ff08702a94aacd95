"""ALBERT (Lan et al. 2020, https://arxiv.org/abs/1909.11942): BERT's block, shared by all layers.

Reference implementation: transformers' `AlbertModel`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import jax
from flax import nnx

from ftjax.models.bert import BertConfig, BertLayer, BertModel
from ftjax.models.encoder_heads import MaskedLM, PooledClassifier, SpanFinder, TokenClassifier
from ftjax.models.family import Family, with_num_labels
from ftjax.models.layers import Activation, Compute
from ftjax.models.schema import Bounds, Count, Layers, Rate, Width

# Unlike `Layers`: what is applied once more has no tensors of its own.
Applications = Annotated[int, Bounds(1, 1024)]


@dataclasses.dataclass(frozen=True)
class AlbertConfig(BertConfig):
    """The fields of config.json that ALBERT's computation uses, with transformers' defaults.

    `classifier_dropout` is config.json's `classifier_dropout_prob`.
    """

    vocab_size: Count = 30000
    embedding_size: Width = 128
    hidden_size: Width = 4096
    num_hidden_layers: Applications = 12
    num_hidden_groups: Layers = 1
    inner_group_num: Layers = 1
    num_attention_heads: Width = 64
    intermediate_size: Width = 16384
    hidden_act: Activation = "gelu_new"
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0

    @staticmethod
    def from_fields(fields: dict) -> dict:
        """Fills in the dropout rate of the heads."""
        fields = with_num_labels(fields)
        rate = fields.pop("classifier_dropout_prob", 0.1)
        rate = fields.get("hidden_dropout_prob", 0.0) if rate is None else rate
        return fields | {"classifier_dropout": rate}

    @property
    def embedding_width(self) -> int:
        """Features of the embedding tables."""
        return self.embedding_size

    @property
    def projects_embeddings(self) -> bool:
        """Always, also where both are equally wide."""
        return True

    @property
    def feed_forward_output_dropout(self) -> float:
        """None here, unlike BERT."""
        return 0.0


class AlbertLayerGroup(nnx.Module):
    """Blocks that are applied one after the other as one layer."""

    def __init__(self, config: AlbertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.albert_layers = nnx.List(
            [BertLayer(config, compute, rngs=rngs) for _ in range(config.inner_group_num)]
        )


class AlbertEncoder(nnx.Module):
    """Groups of blocks, each of which serves its share of the layers."""

    def __init__(self, config: AlbertConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.albert_layer_groups = nnx.List(
            [AlbertLayerGroup(config, compute, rngs=rngs) for _ in range(config.num_hidden_groups)]
        )
        self.layers = config.num_hidden_layers

    def blocks(self) -> Sequence[BertLayer]:
        """The blocks in the order in which they are applied, each as often as it is."""
        per_group = self.layers / len(self.albert_layer_groups)
        return [
            block
            for layer in range(self.layers)
            for block in self.albert_layer_groups[int(layer / per_group)].albert_layers
        ]

    def score_bias(self, length: int) -> jax.Array | None:
        """Nothing is added to the scores of attention."""
        return None


class AlbertModel(BertModel):
    """BERT's network over shared blocks."""

    encoder_class = AlbertEncoder


BLOCK = "encoder.albert_layer_groups.{}.albert_layers.{}"
FAMILY = Family(
    model_type="albert",
    config=AlbertConfig,
    networks={
        "backbone": AlbertModel,
        "pooled": functools.partial(AlbertModel, pooler=True),
        "masked_lm": functools.partial(MaskedLM, AlbertModel),
        "sequence_classification": functools.partial(PooledClassifier, AlbertModel),
        "token_classification": functools.partial(TokenClassifier, AlbertModel),
        "question_answering": functools.partial(SpanFinder, AlbertModel),
    },
    prefix="albert.",
    renames=(
        (f"{BLOCK}.attention.self", f"{BLOCK}.attention"),
        (f"{BLOCK}.attention.output", f"{BLOCK}.attention"),
        (f"{BLOCK}.intermediate.dense", f"{BLOCK}.ffn"),
        (f"{BLOCK}.output.dense", f"{BLOCK}.ffn_output"),
        (f"{BLOCK}.output.LayerNorm", f"{BLOCK}.full_layer_layer_norm"),
        ("embeddings_project", "encoder.embedding_hidden_mapping_in"),
        ("pooler.dense", "pooler"),
        ("head.dense", "predictions.dense"),
        ("head.norm", "predictions.LayerNorm"),
        ("head.decoder", "predictions.decoder"),
        ("head.bias", "predictions.bias"),
    ),
    heads=(
        r"pooler\..*",
        # Apart: where the decoder is untied it has its own bias, and this one is not used.
        r"predictions\.(?!bias$).*",
        r"predictions\.bias",
        r"sop_classifier\..*",
        r"classifier\..*",
        r"qa_outputs\..*",
    ),
    buffers=(r"embeddings\.position_ids",),
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
)
