"""RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692), XLM-RoBERTa and CamemBERT.

BERT's encoder; positions are counted over the real tokens, from `pad_token_id` + 1 on. Reference
implementation: transformers' `RobertaModel`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ftjax.models.bert import BertConfig, BertModel
from ftjax.models.encoder_heads import MaskedLM, SequenceClassifier, SpanFinder, TokenClassifier
from ftjax.models.family import Family
from ftjax.models.schema import Count, Natural


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The fields of config.json that RoBERTa's computation uses, with transformers' defaults."""

    vocab_size: Count = 50265
    pad_token_id: Natural = 1

    @property
    def longest_row(self) -> int | None:
        """How many tokens the table of positions suffices for; it starts with unused rows."""
        return self.max_position_embeddings - self.pad_token_id - 1


@dataclasses.dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """RoBERTa's fields, with the defaults that transformers has for XLM-RoBERTa and CamemBERT."""

    vocab_size: Count = 30522


class RobertaModel(BertModel):
    """BERT's encoder with RoBERTa's positions."""

    def positions(self, input_ids: jax.Array | None, length: int) -> jax.Array:
        """Position ids [batch or 1, length]; padding stands at `pad_token_id` itself.

        What is padding is read off the ids, as in the reference implementation, not the mask.
        """
        padding: int = self.config.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
        if input_ids is None:
            return jnp.arange(length)[None] + padding + 1
        real = (input_ids != padding).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + padding


def roberta_like_family(
    model_type: str, config: type, model: type, renames: tuple[tuple[str, str], ...] = ()
) -> Family:
    """A family with RoBERTa's heads and their published names.

    Args:
        model_type: as config.json has it, and the prefix of the published names.
        config: its dataclass.
        model: its encoder.
        renames: of the encoder's own names.
    """
    return Family(
        model_type=model_type,
        config=config,
        networks={
            "backbone": model,
            "pooled": functools.partial(model, pooler=True),
            "masked_lm": functools.partial(MaskedLM, model, activation="gelu"),
            "sequence_classification": functools.partial(
                SequenceClassifier, model, activation="tanh"
            ),
            "token_classification": functools.partial(TokenClassifier, model),
            "question_answering": functools.partial(SpanFinder, model),
        },
        prefix=f"{model_type}.",
        renames=(
            *renames,
            ("head.dense", "lm_head.dense"),
            ("head.norm", "lm_head.layer_norm"),
            ("head.decoder", "lm_head.decoder"),
            ("head.bias", "lm_head.bias"),
        ),
        heads=(
            r"pooler\..*",
            # Apart: where the decoder is untied it has its own bias, and this one is not used.
            r"lm_head\.(?!bias$).*",
            r"lm_head\.bias",
            r"classifier\..*",
            r"qa_outputs\..*",
        ),
        buffers=(r"embeddings\.position_ids",),
        tied={
            "lm_head.decoder.weight": f"{model_type}.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
    )


FAMILY = roberta_like_family("roberta", RobertaConfig, RobertaModel)
XLM_ROBERTA_FAMILY = dataclasses.replace(FAMILY, model_type="xlm-roberta", config=XLMRobertaConfig)
CAMEMBERT_FAMILY = dataclasses.replace(FAMILY, model_type="camembert", config=XLMRobertaConfig)
