"""Continuing a text: next-token prediction on packed rows."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from ftjax.data.examples import Examples, PackedExamples, packed_examples
from ftjax.data.sources import Records
from ftjax.evaluation.measurement import Retention
from ftjax.evaluation.metrics import perplexity
from ftjax.evaluation.retention import TEXT_FIELDS, text_retention
from ftjax.fields import Field, Fields
from ftjax.losses import tokens
from ftjax.losses.forward import Forward
from ftjax.models.heads import LanguageModel
from ftjax.objectives.base import LossSums, Objective, metric_field


class CausalLanguageModeling(Objective):
    """Predicts the next token of texts; see `Objective`."""

    metrics: ClassVar = {"perplexity": "lower", "loss": "lower"}
    fields: ClassVar[Fields] = {
        "model.logits_at_once": Field(
            2**25, "Most logits held at once; more are computed in chunks.", minimum=1
        ),
        "data.text_field": Field("text", "Column with the text."),
        "data.max_length": Field(256, "Tokens per row; texts are packed into rows.", minimum=3),
        **metric_field(metrics, "perplexity"),
        **TEXT_FIELDS,
    }
    network_name = "causal_lm"

    def read_split(self, split: str) -> PackedExamples:
        """Texts packed into rows."""
        records = self.load(split, {"text": self.config.data.text_field})
        examples = packed_examples(records, self.tokenizer, self.config.data.max_length)
        rows, length = examples.packed.input_ids.shape
        count = np.count_nonzero(examples.packed.segment_ids)
        self.notes.append(f"{split}: {count:,} tokens in {rows:,} rows of {length}")
        return examples

    def network(self, backbone: nnx.Module) -> LanguageModel:
        """The published network with its published head."""
        return LanguageModel(backbone, self.config.model.logits_at_once)

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the next token."""
        return tokens.loss(forward.outputs, forward.batch)

    def outputs(self, network: nnx.Module, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Sum of losses and number of tokens of each row, [rows, 2]."""
        return tokens.row_sums(network(batch), batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Mean loss per token in nats, and perplexity."""
        return perplexity(outputs)

    def retention(self) -> Retention | None:
        """The perplexity of unrelated text."""
        if not self.config.retention.enabled:
            return None
        length = self.config.data.max_length
        return text_retention(self.config.retention, self.tokenizer, length, self.outputs)

    def general_text(self, records: Records) -> Examples:
        """Packed like the task's own."""
        return packed_examples(records, self.tokenizer, self.config.data.max_length)
