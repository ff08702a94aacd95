"""DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108): BERT without token types.

Reference implementation: transformers' `DistilBertModel`.
"""

import dataclasses
import functools
from typing import ClassVar

from ftjax.models.bert import BertConfig, BertModel
from ftjax.models.encoder_heads import MaskedLM, SequenceClassifier, SpanFinder, TokenClassifier
from ftjax.models.family import Family, with_num_labels
from ftjax.models.layers import require_heads_divide
from ftjax.models.schema import Layers, Natural, Rate

BERT_FIELDS = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "seq_classif_dropout": "classifier_dropout",
}
FIXED_FIELDS = ("layer_norm_eps", "type_vocab_size")


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """DistilBERT's fields under BERT's names, with transformers' defaults."""

    num_hidden_layers: Layers = 6
    type_vocab_size: Natural = 0
    classifier_dropout: Rate = 0.2
    qa_dropout: Rate = 0.1
    # What errors call our fields.
    file_names: ClassVar = {ours: theirs for theirs, ours in BERT_FIELDS.items()}

    def __post_init__(self):
        require_heads_divide("dim", self.hidden_size, "n_heads", self.num_attention_heads)

    @staticmethod
    def from_fields(fields: dict) -> dict:
        """Renames DistilBERT's fields to BERT's, but for those that the reference does not read."""
        kept = [name for name in fields if name not in FIXED_FIELDS]
        return with_num_labels({BERT_FIELDS.get(name, name): fields[name] for name in kept})

    @property
    def attention_output_dropout(self) -> float:
        """None here, unlike BERT."""
        return 0.0

    @property
    def token_classifier_dropout(self) -> float:
        """Not that of the sequence classifier."""
        return self.hidden_dropout_prob

    @property
    def span_dropout(self) -> float:
        """Dropout rate before the scores of an answer's ends."""
        return self.qa_dropout


FAMILY = Family(
    model_type="distilbert",
    config=DistilBertConfig,
    networks={
        "backbone": BertModel,
        "masked_lm": functools.partial(MaskedLM, BertModel),
        "sequence_classification": functools.partial(
            SequenceClassifier, BertModel, activation="relu", first_dropout=0.0
        ),
        "token_classification": functools.partial(TokenClassifier, BertModel),
        "question_answering": functools.partial(SpanFinder, BertModel),
    },
    prefix="distilbert.",
    renames=(
        ("encoder.layer.{}.attention.self.query", "transformer.layer.{}.attention.q_lin"),
        ("encoder.layer.{}.attention.self.key", "transformer.layer.{}.attention.k_lin"),
        ("encoder.layer.{}.attention.self.value", "transformer.layer.{}.attention.v_lin"),
        ("encoder.layer.{}.attention.output.dense", "transformer.layer.{}.attention.out_lin"),
        ("encoder.layer.{}.attention.output.LayerNorm", "transformer.layer.{}.sa_layer_norm"),
        ("encoder.layer.{}.intermediate.dense", "transformer.layer.{}.ffn.lin1"),
        ("encoder.layer.{}.output.dense", "transformer.layer.{}.ffn.lin2"),
        ("encoder.layer.{}.output.LayerNorm", "transformer.layer.{}.output_layer_norm"),
        ("head.dense", "vocab_transform"),
        ("head.norm", "vocab_layer_norm"),
        ("head.decoder", "vocab_projector"),
        ("head.bias", "vocab_projector.bias"),
        ("classifier.dense", "pre_classifier"),
        ("classifier.out_proj", "classifier"),
    ),
    heads=(
        r"vocab_(transform|layer_norm|projector)\..*",
        r"(pre_)?classifier\..*",
        r"qa_outputs\..*",
    ),
    buffers=(r"embeddings\.position_ids",),
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    # The published table of positions holds the sinusoids where there are any.
    ignored_fields=frozenset(["sinusoidal_pos_embds"]),
)
