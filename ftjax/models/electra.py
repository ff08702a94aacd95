"""ELECTRA (Clark et al. 2020, https://arxiv.org/abs/2003.10555): BERT's encoder, narrow tables.

Reference implementation: transformers' `ElectraModel`.
"""

import dataclasses
import functools

from flax import nnx

from ftjax.models.bert import BertConfig, BertModel
from ftjax.models.encoder_heads import MaskedLM, SequenceClassifier, SpanFinder, TokenClassifier
from ftjax.models.family import Family
from ftjax.models.layers import ACTIVATIONS, Compute, Output, linear
from ftjax.models.schema import Width


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """The fields of config.json that ELECTRA's computation uses, with transformers' defaults."""

    embedding_size: Width = 128
    hidden_size: Width = 256
    num_attention_heads: Width = 4
    intermediate_size: Width = 1024

    @property
    def embedding_width(self) -> int:
        """Features of the embedding tables; the encoder projects them to `hidden_size`."""
        return self.embedding_size


class ElectraDiscriminatorPredictions(nnx.Module):
    """Dense, activation, and one number per token."""

    def __init__(self, config: ElectraConfig, compute: Compute, *, rngs: nnx.Rngs):
        self.dense = linear(config.hidden_size, config.hidden_size, compute, rngs=rngs)
        self.dense_prediction = linear(config.hidden_size, 1, compute, rngs=rngs)
        self.activation = config.hidden_act

    def __call__(self, hidden):
        """[batch, length, hidden] -> [batch, length]."""
        return self.dense_prediction(ACTIVATIONS[self.activation](self.dense(hidden)))[..., 0]


class ElectraDiscriminator(nnx.Module):
    """The encoder with its head that tells replaced tokens from original ones."""

    def __init__(
        self,
        config: ElectraConfig,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        *,
        rngs: nnx.Rngs,
    ):
        self.backbone = BertModel(config, compute, rngs=rngs)
        self.discriminator_predictions = ElectraDiscriminatorPredictions(config, compute, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(self, *arguments, **keywords) -> Output:
        """As the backbone, with `logits` [batch, length], positive where a token was replaced."""
        output = self.backbone(*arguments, **keywords)
        return output._replace(logits=self.discriminator_predictions(output.last_hidden_state))


FAMILY = Family(
    model_type="electra",
    config=ElectraConfig,
    networks={
        "backbone": BertModel,
        "masked_lm": functools.partial(MaskedLM, BertModel, activation="gelu"),
        "replaced_token_detection": ElectraDiscriminator,
        "sequence_classification": functools.partial(
            SequenceClassifier, BertModel, activation="gelu"
        ),
        "token_classification": functools.partial(TokenClassifier, BertModel),
        "question_answering": functools.partial(SpanFinder, BertModel),
    },
    prefix="electra.",
    renames=(
        ("head.dense", "generator_predictions.dense"),
        ("head.norm", "generator_predictions.LayerNorm"),
        ("head.decoder", "generator_lm_head"),
        ("head.bias", "generator_lm_head.bias"),
    ),
    heads=(
        r"(generator_predictions|generator_lm_head)\..*",
        r"discriminator_predictions\..*",
        r"sequence_summary\..*",
        r"classifier\..*",
        r"qa_outputs\..*",
    ),
    buffers=(r"embeddings\.position_ids",),
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    # Of the head for multiple choice.
    ignored_fields=frozenset(
        ["summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"]
    ),
)
