"""Continuing a text: next-token prediction on packed rows."""

from collections.abc import Mapping
from typing import ClassVar, Self

import jax
import numpy as np

from ftjax.data.examples import Examples, PackedExamples, packed_examples
from ftjax.data.sources import Records
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.measurement import Retention
from ftjax.evaluation.metrics import PERPLEXITY_METRICS, perplexity, token_intervals
from ftjax.evaluation.retention import TEXT_FIELDS, text_retention
from ftjax.fields import Field, Fields
from ftjax.losses import tokens
from ftjax.losses.forward import Forward
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums, Objective
from ftjax.objectives.fields import LOGITS_AT_ONCE, metric_field
from ftjax.objectives.teachers import Teacher
from ftjax.objectives.token_teachers import (
    TOKEN_TEACHER,
    token_teacher,
    with_kept_tokens,
    with_token_teacher,
)


class CausalLanguageModeling(Objective):
    """Predicts the next token of texts; see `Objective`."""

    metrics: ClassVar = PERPLEXITY_METRICS
    fields: ClassVar[Fields] = {
        **LOGITS_AT_ONCE,
        "data.text_field": Field("text", "Column with the text."),
        "data.max_length": Field(256, "Tokens per row; texts are packed into rows.", minimum=3),
        **metric_field(metrics, "perplexity"),
        **TEXT_FIELDS,
        **TOKEN_TEACHER,
    }

    @property
    def network_name(self) -> str:
        """Every published decoder has one."""
        return "causal_lm"

    def read_split(self, split: str) -> PackedExamples:
        """Texts packed into rows.

        Raises:
            ValueError: texts that are all empty, or no texts.
        """
        records = self.load(split, {"text": self.config.data.text_field})
        examples = packed_examples(records, self.tokenizer, self.config.data.max_length)
        rows, length = examples.packed.input_ids.shape
        segments = examples.packed.segment_ids
        if not np.any((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)):
            raise ValueError(f"{records.name}: no text of {split} has a token to be predicted.")
        count = np.count_nonzero(examples.packed.segment_ids)
        self.notes.append(f"{split}: {count:,} tokens in {rows:,} rows of {length}")
        return examples

    def network(self, backbone: Network) -> LanguageModel:
        """The published network with its published head."""
        return LanguageModel(backbone, self.config.model.logits_at_once)

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the next token, and of a teacher if there is one."""
        return with_token_teacher(self.config, forward, tokens.loss(forward.outputs, forward.batch))

    def general_loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the next token."""
        return tokens.loss(forward.outputs, forward.batch)

    def teacher(self) -> Teacher | None:
        """A causal language model with the same tokenizer."""
        return token_teacher(self)

    def with_teacher(self, found: np.ndarray) -> Self:
        """The same, with the tokens that the teacher held likeliest."""
        return with_kept_tokens(self, found)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Sum of losses, number of tokens and of right ones in each row, [rows, 3]."""
        return tokens.row_sums(network(batch), batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Mean loss per token in nats, and perplexity."""
        return perplexity(outputs)

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `token_intervals`."""
        return token_intervals(outputs["test"])

    def retention(self) -> Retention:
        """The perplexity of unrelated text."""
        return text_retention(self.config.retention, self.general_text, self.outputs)

    def general_text(self, records: Records) -> Examples:
        """Packed like the task's own."""
        return packed_examples(records, self.tokenizer, self.config.data.max_length)
