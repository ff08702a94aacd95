"""MPNet (Song et al. 2020, https://arxiv.org/abs/2004.09297): RoBERTa's positions and T5's too.

The network of all-mpnet-base-v2. Reference implementation: transformers' `MPNetModel`.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from ftjax.models.bert import BertEncoder
from ftjax.models.family import with_num_labels
from ftjax.models.layers import Compute, embedding
from ftjax.models.roberta import RobertaConfig, RobertaModel, roberta_like_family
from ftjax.models.schema import Bounds, Count, Natural
from ftjax.models.t5 import relative_position_buckets

# The reference implementation takes neither from the config, nor the padding token.
BUCKETS, FURTHEST, PADDING = 32, 128, 1


@dataclasses.dataclass(frozen=True)
class MPNetConfig(RobertaConfig):
    """The fields of config.json that MPNet's computation uses, with transformers' defaults."""

    vocab_size: Count = 30527
    type_vocab_size: Natural = 0
    relative_attention_num_buckets: Annotated[int, Bounds(BUCKETS, 2**20)] = BUCKETS

    @staticmethod
    def from_fields(fields: dict) -> dict:
        """Fixes what the reference implementation does not read from the config."""
        return with_num_labels(fields) | {
            "pad_token_id": PADDING,
            "type_vocab_size": 0,
            "classifier_dropout": fields.get("hidden_dropout_prob", 0.1),
        }


class MPNetEncoder(BertEncoder):
    """The stack of blocks, and what they add to their scores by distance."""

    def __init__(self, config: MPNetConfig, compute: Compute, *, rngs: nnx.Rngs):
        super().__init__(config, compute, rngs=rngs)
        self.relative_attention_bias = embedding(
            config.relative_attention_num_buckets, config.num_attention_heads, compute, rngs=rngs
        )

    def score_bias(self, length: int) -> jax.Array:
        """What is added to all scores of attention, [1, heads, length, length].

        Distances are counted in places of the row, whatever the positions are.
        """
        buckets = relative_position_buckets(BUCKETS, FURTHEST, bidirectional=True)
        distance = jnp.arange(length)[None] - jnp.arange(length)[:, None]
        index = jnp.asarray(buckets)[jnp.clip(distance, -FURTHEST, FURTHEST) + FURTHEST]
        return self.relative_attention_bias(index).transpose(2, 0, 1)[None]


class MPNetModel(RobertaModel):
    """RoBERTa's network with a bias by distance in all blocks."""

    encoder_class = MPNetEncoder


BLOCK = "encoder.layer.{}.attention"
FAMILY = roberta_like_family(
    "mpnet",
    MPNetConfig,
    MPNetModel,
    renames=(
        (f"{BLOCK}.self.query", f"{BLOCK}.attn.q"),
        (f"{BLOCK}.self.key", f"{BLOCK}.attn.k"),
        (f"{BLOCK}.self.value", f"{BLOCK}.attn.v"),
        (f"{BLOCK}.output.dense", f"{BLOCK}.attn.o"),
        (f"{BLOCK}.output.LayerNorm", f"{BLOCK}.LayerNorm"),
    ),
)
