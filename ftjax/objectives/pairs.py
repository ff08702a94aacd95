"""What objectives share whose rows hold two texts each, compared with the network before tuning."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.dialogues import Chat
from ftjax.data.examples import Batch, ExamplesAround
from ftjax.data.preferences import read_pairs
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadRecordError, bad_record
from ftjax.data.supervised import SupervisedExamples, SupervisedText, tokenize_marked
from ftjax.data.turns import Marked
from ftjax.evaluation.measurement import Measurement
from ftjax.fields import Field, Fields
from ftjax.losses.forward import Forward
from ftjax.losses.preference import pair_sums
from ftjax.models.layers import Network
from ftjax.objectives.chats import TEMPLATE, TOOLS, ChatObjective, Refusal, refuse_all

REFERENCE: Fields = {
    "objective.precompute_ref_log_probs": Field(
        True,
        "Compute what the network before tuning says once, and keep it; else in each step, which "
        "needs a copy of what is trained and half as long again.",
    ),
    "objective.chosen_alarm": Field(
        10.0,
        "Say so where answers that people liked have become less likely by so many nats on "
        "average.",
        above=0.0,
    ),
}
# Texts of a row.
TEXTS = 2


PAIR_FIELDS: Fields = {
    **TOOLS,
    **TEMPLATE,
    "data.max_length": Field(
        1024, "Most tokens of a prompt with an answer; what is beyond is cut.", minimum=3
    ),
}
PREFERRED: Fields = {
    "data.prompt_field": Field(
        "prompt",
        "Column with what is answered, a text or messages; None: what both answers begin with.",
        optional=str,
    ),
    "data.chosen_field": Field("chosen", "Column with the answer that people preferred."),
    "data.rejected_field": Field("rejected", "Column with the other answer."),
}


class PairObjective(ChatObjective):
    """An objective of two texts a row, which do not see each other; see `Objective`.

    Attributes:
        text_names: what sentences call the two.
        column_names: what a record holds, by our names; `data.<name>_field` says the column.
    """

    text_names: ClassVar[tuple[str, str]] = ("chosen answer", "rejected answer")
    column_names: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected", "tools")
    # Split -> float32 [examples, 2], what the network before tuning says of both answers.
    _reference: Mapping[str, np.ndarray] = {}

    @property
    def columns(self) -> dict[str, str]:
        """Our names -> columns."""
        named = {name: self.config.data[f"{name}_field"] for name in self.column_names}
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}

    @property
    @abc.abstractmethod
    def needs_reference(self) -> bool:
        """Whether the loss compares with the network before tuning."""

    def read_preferred(self, split: str, records: Records) -> "PairExamples":
        """Rows of a chosen and a rejected answer; turns to be written are drawn of the chosen.

        Raises:
            BadRecordError: see `read_pairs` and `paired`.
        """
        pairs = read_pairs(records)
        self.facts["chats"] = isinstance(pairs[0].chosen, Chat)
        if "evaluation.answers" in self.fields:
            self.draw_asked(split, records, [pair.chosen for pair in pairs])
        sides = ([pair[side] for pair in pairs] for side in range(TEXTS))
        texts = [self.marked(split, records, side, answers_only=True) for side in sides]
        found = self.paired(split, records, texts)
        examples = found.examples
        counts = np.diff(examples.text.offsets)
        chosen, rejected = found.answer_tokens.mean(0)
        longer = int((counts > self.config.data.max_length).sum())
        cut = f"; {longer:,} texts were cut" if longer else ""
        self.notes.append(
            f"{split}: {len(examples.lengths):,} pairs; chosen answers have {chosen:,.1f} tokens "
            f"on average, rejected ones {rejected:,.1f}{cut}"
        )
        return found

    @property
    def compares_live(self) -> bool:
        """Whether each step asks the network before tuning."""
        return self.needs_reference and not self.config.objective.precompute_ref_log_probs

    def paired(
        self, split: str, records: Records, texts: Sequence[Sequence[list[Marked]]]
    ) -> "PairExamples":
        """Rows of two texts.

        Args:
            split: of the records.
            records: that the texts are of.
            texts: of each of the two, what `marked` gave for the records.

        Raises:
            BadRecordError: a text of which nothing is left, or that is several examples.
        """
        marked = self._one_of_each(records, texts)

        def refusal(index: int, problem: str) -> BadRecordError:
            name = self.text_names[index % TEXTS]
            return bad_record(records, index // TEXTS, f"the {name}: {problem}")

        text = tokenize_marked(marked, self.tokenizer, refusal)
        length = self.config.data.max_length
        begins, ends = text.offsets[:-1], text.offsets[1:]
        pieces = np.stack([begins, np.minimum(ends, begins + length)], axis=1)
        _refuse_cut_off(text, pieces, length, refusal)
        rows = np.arange(len(pieces)).reshape(-1, TEXTS)
        buckets = sorted({max(-(-TEXTS * length // part), 3) for part in (8, 4, 2, 1)})
        if split == "train":
            where = f"{records.where(0)}, the {self.text_names[0]}"
            self.note_training_texts(marked, where, text)
        examples = SupervisedExamples(text, pieces, rows.tolist(), buckets, records.fingerprint)
        return PairExamples(examples)

    def _one_of_each(
        self, records: Records, texts: Sequence[Sequence[list[Marked]]]
    ) -> list[Marked]:
        """Both texts of each record in turn."""
        # What is said of the prompts, and of how to end an answer, is said once.
        self.notes = list(dict.fromkeys(self.notes))
        problems = {
            index: f"{records.where(index)}: the {name} has several turns, which the chat "
            "template writes otherwise once others follow. Give it one."
            for name, groups in zip(self.text_names, texts, strict=True)
            for index, group in enumerate(groups)
            if len(group) != 1
        }
        if problems:
            raise BadRecordError(problems)
        return [one for both in zip(*texts, strict=True) for (one,) in both]

    def pair_examples(self, split: str) -> "PairExamples":
        """The rows of a split."""
        return cast(PairExamples, self.examples[split])

    def reference(self) -> Measurement | None:
        """What the network before tuning says of both answers, [rows, 2], where it is needed."""
        if not self.needs_reference:
            return None
        names = [name for name in self.examples if name != "train" or not self.compares_live]
        examples = {name: self.examples[name] for name in names}
        return Measurement(examples, self.outputs, _logps)

    def with_reference(self, found: Mapping[str, np.ndarray]) -> Self:
        """The same, with what `reference` measured."""
        other = self.with_examples(
            {
                name: dataclasses.replace(self.pair_examples(name), reference=found.get(name))
                for name in self.examples
            }
        )
        other._reference = dict(found)
        return other

    def reference_of(self, split: str) -> jax.Array | None:
        """What the network before tuning says of a split's answers, float32 [rows, 2]."""
        found = self._reference.get(split)
        return None if found is None else jnp.asarray(found)

    def reference_in(self, forward: Forward, real: jax.Array) -> jax.Array | None:
        """The same of a batch's.

        Args:
            forward: of a batch.
            real: bool [rows], which of them count; the others may hold anything.
        """
        found = forward.batch.get("reference_logps")
        if self.compares_live:
            before = pair_sums(forward.base()(forward.batch), forward.batch)
            found = jax.lax.stop_gradient(_logps_of(before))
        return None if found is None else jnp.where(real[:, None], found, 0.0)

    def alarm(self, metrics: Mapping[str, float]) -> str | None:
        """Says so where liked answers have lost much, as they often do beside others."""
        fell = -metrics.get("validation/logps/chosen_change", 0.0)
        if not self.needs_reference or fell <= self.config.objective.chosen_alarm:
            return None
        return (
            f"Answers that people liked have become less likely by {fell:.1f} nats on average: the "
            "network moves away from all. Train less, raise config.objective.beta, or learn such "
            "answers as well (objective sft, or preference with loss_type cpo or orpo)."
        )

    @staticmethod
    def outputs(network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """See `pair_sums`, [rows, 9]."""
        return pair_sums(network(batch), batch)


@dataclasses.dataclass(frozen=True)
class PairExamples(ExamplesAround):
    """Rows with two answers; see `Examples`.

    Attributes:
        examples: the rows; their texts are segments 1 and 2.
        reference: float32 [examples, 2], what the network before tuning says of the answers, for
            losses that need it.
        columns: what else a batch holds of each example, [examples].
    """

    examples: SupervisedExamples
    reference: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def answer_tokens(self) -> np.ndarray:
        """Tokens of the answers of each row, whole, [examples, 2]."""
        text = self.examples.text
        return (np.diff(text.offsets) * text.shares).reshape(-1, TEXTS)

    def with_columns(self, **columns: np.ndarray) -> "PairExamples":
        """The same with further columns, [examples] each."""
        return dataclasses.replace(self, columns={**self.columns, **columns})

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """As of the rows, and perhaps `reference_logps` float32 [rows, 2]; columns.

        The weights of a row sum to 1: it counts once, however long its answers are.
        """
        batch = self.examples.batch(indices, rows=rows, length=length)
        batch["weights"] /= np.maximum(batch["weights"].sum(1, keepdims=True), 1.0)
        # Rows that only fill up have id -1 and no weight, whatever stands there.
        ids = batch["example_ids"]
        if self.reference is not None:
            batch["reference_logps"] = self.reference[ids]
        return batch | {name: column[ids] for name, column in self.columns.items()}


def _logps_of(sums: Any) -> Any:
    """Log-probabilities of chosen and rejected answers, [rows, 2], from `pair_sums`."""
    return sums[:, (0, 3)] if isinstance(sums, np.ndarray) else sums[:, jnp.asarray([0, 3])]


def _logps(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: _logps_of(sums) for name, sums in found.items()}


def _refuse_cut_off(
    text: SupervisedText, pieces: np.ndarray, length: int, refusal: Refusal
) -> None:
    """Each answer must have a token left."""
    learned, counts = text.predicted(pieces[:, 0]), np.diff(text.offsets)
    problems = {
        index: f"the first {length:,} of {counts[index]:,} tokens hold nothing of it. Raise "
        "config.data.max_length, or leave the record out."
        for index, (start, end) in enumerate(pieces)
        if not learned[start:end].any()
    }
    refuse_all(problems, refusal)
