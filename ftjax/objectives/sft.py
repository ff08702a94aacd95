"""Supervised fine-tuning: what an assistant answers, learned from chats."""

from collections.abc import Mapping
from typing import ClassVar, Self, cast

import jax.numpy as jnp
import numpy as np

from ftjax.data.dialogues import read_chats
from ftjax.data.sources.records import BadRecordError, bad_record
from ftjax.data.supervised import (
    STRATEGIES,
    SupervisedExamples,
    SupervisedText,
    fill_rows,
    tokenize_marked,
)
from ftjax.evaluation.intervals import Interval
from ftjax.evaluation.metrics import (
    SUPERVISED_TOKEN_METRICS,
    supervised_token_metrics,
    token_intervals,
)
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import tokens
from ftjax.losses.forward import Forward
from ftjax.objectives.base import LossSums
from ftjax.objectives.chats import TEMPLATE, TOOLS, ChatObjective, Refusal, refuse_all
from ftjax.objectives.fields import metric_field
from ftjax.objectives.teachers import Teacher
from ftjax.objectives.token_teachers import (
    TOKEN_TEACHER,
    token_teacher,
    with_kept_tokens,
    with_token_teacher,
)

ASSISTANT_ONLY: Fields = {
    "objective.assistant_only_loss": Field(
        True, "Learn what the assistant says, its end of turn included; else the whole chat."
    )
}
COMPLETION_ONLY: Fields = {
    "objective.completion_only_loss": Field(
        True, "Learn what the assistant says in the completion; else the prompt, too."
    )
}
FORMATS: dict[str, Fields] = {
    "messages": {
        "data.messages_field": Field("messages", "Column with messages: role and content."),
        **TOOLS,
        **TEMPLATE,
        **ASSISTANT_ONLY,
    },
    "prompt_completion": {
        "data.prompt_field": Field("prompt", "Column with a text, or messages."),
        "data.completion_field": Field("completion", "Column with what follows, of the same kind."),
        **TOOLS,
        **TEMPLATE,
        **COMPLETION_ONLY,
    },
    "sharegpt": {
        "data.conversations_field": Field("conversations", "Column with turns: from and value."),
        **TOOLS,
        **TEMPLATE,
        **ASSISTANT_ONLY,
    },
    "alpaca": {
        "data.instruction_field": Field("instruction", "Column with what is asked."),
        "data.input_field": Field("input", "Column with what it is about.", optional=str),
        "data.output_field": Field("output", "Column with the answer."),
        **TEMPLATE,
        **COMPLETION_ONLY,
    },
    "text": {"data.text_field": Field("text", "Column with the text; all of it is learned.")},
}


class SupervisedFineTuning(ChatObjective):
    """Predicts what the assistant says in chats, given what stands before; see `Objective`."""

    metrics: ClassVar = SUPERVISED_TOKEN_METRICS
    fields: ClassVar[Fields] = {
        **ChatObjective.fields,
        **TOKEN_TEACHER,
        "data.format": Field("messages", "What a record holds.", options=FORMATS),
        "data.max_length": Field(
            1024, "Most tokens of a row; what an example has beyond is cut or divided.", minimum=3
        ),
        "data.packing": Field(
            False,
            "Fill rows with several examples each, which do not see each other.",
            options={
                True: {
                    "data.packing_strategy": Field(
                        "bfd",
                        "Best fit decreasing, too long examples cut or divided (bfd_split); or in "
                        "order, an example going on in the next row (wrapped).",
                        choices=STRATEGIES,
                    )
                },
                False: {},
            },
        ),
        **metric_field(metrics, "loss"),
    }

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Answers to texts that ask for none."""
        if config.evaluation.answers and config.data.format == "text":
            return (
                "config.evaluation.answers compares answers, and records of config.data.format = "
                "'text' ask for none; leave it at 0."
            )
        return None

    def read_split(self, split: str) -> SupervisedExamples:
        """Chats, rendered and tokenised, in rows."""
        records = self.load(split, self.columns)
        found = read_chats(records, self.config.data.format)
        groups = self.marked(split, records, found, answers_only=self._only is not None)
        marked = [one for group in groups for one in group]
        record_of = [index for index, group in enumerate(groups) for _ in group]
        self.draw_asked(split, records, found)

        def refusal(index: int, problem: str) -> BadRecordError:
            return bad_record(records, record_of[index], problem)

        text = tokenize_marked(marked, self.tokenizer, refusal)
        self._refuse_shares(text, refusal)
        length, strategy = self.config.data.max_length, self.config.data.get("packing_strategy")
        pieces, rows = fill_rows(text, length, strategy)
        if strategy not in ("bfd_split", "wrapped"):
            _refuse_cut_off(text, pieces, length, refusal)
        buckets = sorted({max(-(-length // part), 3) for part in (8, 4, 2, 1)})
        buckets = [length] if strategy else buckets
        examples = SupervisedExamples(text, pieces, rows, buckets, records.fingerprint)
        self._note(split, len(records), examples)
        if split == "train":
            self.note_training_texts(marked, records.where(record_of[0]), text)
        return examples

    @property
    def columns(self) -> dict[str, str]:
        """Our names -> columns, of the format."""
        data = self.config.data
        fields = [name.split(".")[1] for name in FORMATS[data.format] if name.endswith("_field")]
        named = {field.removesuffix("_field"): data[field] for field in fields}
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}

    @property
    def _only(self) -> str | None:
        """The field that says that a part is learned, where it does."""
        names = ("assistant_only_loss", "completion_only_loss")
        return next((name for name in names if self.config.objective.get(name)), None)

    def _refuse_shares(self, text: SupervisedText, refusal: Refusal) -> None:
        """Raises BadRecordError for examples of which nothing is learned, or all of it."""
        told = dict.fromkeys(np.flatnonzero(text.shares == 0).tolist(), "nothing of it is learned")
        if self._only is not None:
            all_of_it = (
                "all of its tokens would be learned, as nothing stands before them, and "
                f"config.objective.{self._only} is to learn a part. Give it a prompt, or set the "
                "field to False."
            )
            told |= dict.fromkeys(np.flatnonzero(text.shares == 1).tolist(), all_of_it)
        refuse_all(told, refusal)

    def _note(self, split: str, records: int, examples: SupervisedExamples) -> None:
        text, data = examples.text, self.config.data
        lengths, counts = examples.lengths, np.diff(text.offsets)
        told = f"{split}: {records:,} records"
        if len(counts) > records:
            told += (
                f" as {len(counts):,} examples, since the chat template writes earlier answers "
                "otherwise than a last one"
            )
        told += f", {lengths.sum():,} tokens, {examples.share_supervised:.0%} of them learned"
        if data.packing:
            full = lengths.mean() / data.max_length
            told += f", in {len(lengths):,} rows of {data.max_length:,} that are {full:.0%} full"
        if longer := int((counts > data.max_length).sum()):
            lost = 1 - lengths.sum() / counts.sum()
            cut = "divided" if data.get("packing_strategy") in ("bfd_split", "wrapped") else "cut"
            told += f"; {longer:,} longer than {data.max_length:,} tokens were {cut}"
            told += f", {lost:.1%} of all tokens left out"
        self.notes.append(told)

    def loss(self, forward: Forward) -> LossSums:
        """Cross-entropy of the tokens that are learned; each counts once, whatever its example.

        With a teacher, what it says of them as well.
        """
        total, weight, metrics = with_token_teacher(
            self.config, forward, tokens.loss_and_entropy(forward.outputs, forward.batch)
        )
        real = jnp.sum(forward.batch["segment_ids"] > 0).astype(jnp.float32)
        return total, weight, metrics | {"share_supervised": (weight, real)}

    def teacher(self) -> Teacher | None:
        """A causal language model with the same tokenizer."""
        return token_teacher(self)

    def with_teacher(self, found: np.ndarray) -> Self:
        """The same, with the tokens that the teacher held likeliest."""
        return with_kept_tokens(self, found)

    outputs = ChatObjective.token_sums

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """See `token_intervals`."""
        return token_intervals(outputs["test"], "mean_token_accuracy")

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """See `supervised_token_metrics`, and `share_supervised` of the split's tokens."""
        examples = cast(SupervisedExamples, self.examples[split])
        found = supervised_token_metrics(outputs, examples.predicted_bytes)
        return {**found, "share_supervised": examples.share_supervised}


def _refuse_cut_off(
    text: SupervisedText, pieces: np.ndarray, length: int, refusal: Refusal
) -> None:
    """What would be learned of an example must not all be cut off."""
    learned, counts = text.predicted(pieces[:, 0]), np.diff(text.offsets)
    problems = {
        index: f"the first {length:,} of its {counts[index]:,} tokens hold nothing that is "
        "learned. Raise config.data.max_length, divide it (packing_strategy = 'bfd_split'), or "
        "leave the record out."
        for index, (start, end) in enumerate(pieces)
        if not learned[start:end].any()
    }
    refuse_all(problems, refusal)
