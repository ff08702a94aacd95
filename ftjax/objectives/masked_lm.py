"""Guessing masked tokens: an encoder's pretraining continued on texts of one's own."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.examples import Examples
from ftjax.data.masked import MaskedExamples, masked_examples, texts_with_masks
from ftjax.data.sources import Records
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.measurement import Retention
from ftjax.evaluation.metrics import MASKED_TOKEN_METRICS, masked_token_metrics, token_intervals
from ftjax.evaluation.retention import TEXT_FIELDS, text_retention
from ftjax.fields import Field, Fields
from ftjax.losses import tokens
from ftjax.losses.forward import Forward
from ftjax.models.layers import Network
from ftjax.models.masked_language_model import MaskedLanguageModel
from ftjax.objectives.base import LossSums, Objective
from ftjax.objectives.fields import LOGITS_AT_ONCE, metric_field

# How many words a prediction names for each mask.
LIKELIEST = 5


class MaskedLanguageModeling(Objective):
    """Guesses masked tokens of texts; see `Objective`.

    Training masks each row anew in each epoch; what is scored has the same masks in every run,
    whatever its seed.
    """

    metrics: ClassVar = MASKED_TOKEN_METRICS
    fields: ClassVar[Fields] = {
        **LOGITS_AT_ONCE,
        "data.text_field": Field("text", "Column with the text."),
        "data.max_length": Field(256, "Tokens per row; texts are packed into rows.", minimum=3),
        "objective.mlm_probability": Field(
            0.15, "Share of the tokens that are to be guessed.", above=0.0, below=1.0
        ),
        "objective.whole_word_mask": Field(False, "Mask all tokens of a word, or none."),
        **metric_field(metrics, "loss"),
        **TEXT_FIELDS,
    }

    @property
    def network_name(self) -> str:
        """Every published encoder has one."""
        return "masked_lm"

    def read_split(self, split: str) -> MaskedExamples:
        """Texts packed into rows."""
        records = self.load(split, self.prediction_fields)
        examples = self.general_text(records)
        rows, length = examples.units.shape
        maskable = np.count_nonzero(examples.units >= 0)
        self.notes.append(
            f"{split}: {maskable:,} tokens that may be masked, in {rows:,} rows of {length}"
        )
        return examples

    def general_text(self, records: Records) -> MaskedExamples:
        """Packed and masked like the task's own."""
        return masked_examples(
            records,
            self.tokenizer,
            self.config.data.max_length,
            share=self.config.objective.mlm_probability,
            whole_words=self.config.objective.whole_word_mask,
        )

    def epoch_examples(self, epoch: int) -> Examples:
        """With masks of the run's seed and the epoch."""
        return self._masked("train").drawn_for(self.config.seed, epoch)

    def network(self, backbone: Network) -> MaskedLanguageModel:
        """The published network with its published head.

        Raises:
            ValueError: rows longer than the network has positions for.
        """
        network = MaskedLanguageModel(backbone, self.config.model.logits_at_once)
        longest, length = network.longest_row(), self.config.data.max_length
        if longest is not None and length > longest:
            raise ValueError(
                f"config.data.max_length = {length}, and the network has positions for {longest} "
                "tokens; lower it."
            )
        return network

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the masked tokens."""
        return tokens.loss(forward.outputs, forward.batch)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Sum of losses, number of masked tokens and of right guesses in each row, [rows, 3]."""
        return tokens.row_sums(network(batch), batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `masked_token_metrics`."""
        return masked_token_metrics(outputs, self._masked(split).tokens_per_byte)

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `token_intervals`."""
        found = token_intervals(outputs["test"], "accuracy")
        return {name: found[name] for name in ("loss", "accuracy")}

    def retention(self) -> Retention:
        """How well masked tokens of unrelated text are guessed."""
        return text_retention(self.config.retention, self.general_text, self.outputs)

    @property
    def prediction_fields(self) -> dict[str, str]:
        """The text."""
        return {"text": self.config.data.text_field}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Texts with mask tokens in them.

        Raises:
            ValueError: a text without one, or too long.
        """
        found = Records("texts", [dict(record) for record in records])
        return texts_with_masks(found, self.tokenizer, self.config.data.max_length)

    def prediction_outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The likeliest tokens of each mask and their probabilities, [rows, masks, 2, likeliest].

        Token ids as float32, which holds every id below 2**24; -1 for what is no mask.
        """
        found = network(batch)
        chances = jax.nn.softmax(found.project(found.hidden).astype(jnp.float32))
        chances, ids = jax.lax.top_k(chances, LIKELIEST)
        real = batch["weights"][..., None] > 0
        return jnp.stack([jnp.where(real, ids, -1).astype(jnp.float32), chances], axis=-2)

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`masks`: the likeliest tokens of each, as transformers' "fill-mask" pipeline has them."""
        return [
            {"masks": [self._named(*mask) for mask in row if mask[0, 0] >= 0]} for row in outputs
        ]

    def _named(self, ids: np.ndarray, chances: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"token_str": self.tokenizer.decode([int(token)]), "score": round(float(chance), 4)}
            for token, chance in zip(ids, chances, strict=True)
        ]

    def describe_prediction(self, prediction: Mapping[str, Any]) -> list[str]:
        """A line for each mask."""
        return [
            ", ".join(f"{found['token_str'].strip()} {found['score']:.1%}" for found in mask)
            for mask in prediction["masks"]
        ]

    def _masked(self, split: str) -> MaskedExamples:
        return cast(MaskedExamples, self.examples[split])
