"""Preferences: which of two answers people liked better (DPO and what followed it)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.examples import Batch, ExamplesAround
from ftjax.data.preferences import Pair, read_pairs
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadRecordError, bad_record
from ftjax.data.supervised import SupervisedExamples, SupervisedText, tokenize_marked
from ftjax.data.turns import Marked
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.evaluation.measurement import Measurement
from ftjax.fields import Field, Fields
from ftjax.losses.forward import Forward
from ftjax.losses.preference import LOSS_TYPES, LossType, Pairs, pair_sums, pairs_of
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums, metric_field
from ftjax.objectives.chats import TEMPLATE, TOOLS, ChatObjective, Refusal, refuse_all

METRICS = {
    "loss": "lower",
    "rewards/accuracies": "higher",
    "rewards/margins": "higher",
    "rewards/chosen": "higher",
    "rewards/rejected": "lower",
    "logps/chosen": "higher",
    "logps/rejected": "lower",
}
"""By TRL's names -> which way is better."""

REFERENCE: Fields = {
    "objective.precompute_ref_log_probs": Field(
        True,
        "Compute what the network before tuning says once, and keep it; else in each step, which "
        "needs a copy of what is trained and half as long again.",
    )
}
# Every row holds both answers, each behind its prompt.
ANSWERS = 2


class Preference(ChatObjective):
    """Makes chosen answers likelier than rejected ones; see `Objective`.

    Both texts of a pair stand in one row, without seeing each other.
    """

    metrics: ClassVar = METRICS
    fields: ClassVar[Fields] = {
        **ChatObjective.fields,
        "objective.loss_type": Field(
            "sigmoid",
            "What is learned from a pair, by TRL's names; sigmoid is DPO.",
            options={
                name: {**kind.fields, **(REFERENCE if kind.needs_reference else {})}
                for name, kind in LOSS_TYPES.items()
            },
        ),
        "objective.chosen_alarm": Field(
            10.0,
            "Say so where chosen answers have become less likely by so many nats on average.",
            above=0.0,
        ),
        "data.prompt_field": Field(
            "prompt",
            "Column with what is answered, a text or messages; None: what both answers begin with.",
            optional=str,
        ),
        "data.chosen_field": Field("chosen", "Column with the answer that people preferred."),
        "data.rejected_field": Field("rejected", "Column with the other answer."),
        **TOOLS,
        **TEMPLATE,
        "data.max_length": Field(
            1024, "Most tokens of a prompt with an answer; what is beyond is cut.", minimum=3
        ),
        **metric_field(metrics, "loss"),
    }
    # Split -> float32 [examples, 2], what the network before tuning says of both answers.
    _reference: Mapping[str, np.ndarray] = {}

    @property
    def columns(self) -> dict[str, str]:
        """Our names -> columns."""
        names = ("prompt", "chosen", "rejected", "tools")
        named = {name: self.config.data[f"{name}_field"] for name in names}
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}

    @property
    def _kind(self) -> LossType:
        return LOSS_TYPES[self.config.objective.loss_type]

    @property
    def compares_live(self) -> bool:
        """Whether each step asks the network before tuning."""
        return self._kind.needs_reference and not self.config.objective.precompute_ref_log_probs

    def read_split(self, split: str) -> "PairExamples":
        """Pairs, rendered and tokenised, one a row."""
        records = self.load(split, self.columns)
        pairs = read_pairs(records)
        self.draw_asked(split, records, [pair.chosen for pair in pairs])
        marked = self._marked_pairs(split, records, pairs)

        def refusal(index: int, problem: str) -> BadRecordError:
            name = "rejected" if index % ANSWERS else "chosen"
            return bad_record(records, index // ANSWERS, f"the {name} answer: {problem}")

        text = tokenize_marked(marked, self.tokenizer, refusal)
        length = self.config.data.max_length
        begins, ends = text.offsets[:-1], text.offsets[1:]
        pieces = np.stack([begins, np.minimum(ends, begins + length)], axis=1)
        _refuse_cut_off(text, pieces, length, refusal)
        rows = np.arange(len(pieces)).reshape(-1, ANSWERS)
        buckets = sorted({max(-(-ANSWERS * length // part), 3) for part in (8, 4, 2, 1)})
        of_rows = SupervisedExamples(text, pieces, rows.tolist(), buckets, records.fingerprint)
        self._note(split, of_rows)
        if split == "train":
            self.note_training_texts(marked, f"{records.where(0)}, the chosen answer", text)
        return PairExamples(of_rows)

    def _marked_pairs(self, split: str, records: Records, pairs: Sequence[Pair]) -> list[Marked]:
        """Chosen and rejected texts in turn."""
        found = {
            name: self.marked(split, records, [getattr(p, name) for p in pairs], answers_only=True)
            for name in ("chosen", "rejected")
        }
        # What is said of the prompts, and of how to end an answer, is said once.
        self.notes = list(dict.fromkeys(self.notes))
        problems = {
            index: f"{records.where(index)}: the {name} answer has several turns, which the chat "
            "template writes otherwise once others follow. Give pairs that differ in one turn."
            for name, groups in found.items()
            for index, group in enumerate(groups)
            if len(group) != 1
        }
        if problems:
            raise BadRecordError(problems)
        both = zip(found["chosen"], found["rejected"], strict=True)
        return [one for pair in both for (one,) in pair]

    def _note(self, split: str, examples: SupervisedExamples) -> None:
        text = examples.text
        counts, learned = np.diff(text.offsets), np.add.reduceat(text.supervised, text.offsets[:-1])
        chosen, rejected = learned[::ANSWERS].mean(), learned[1::ANSWERS].mean()
        longer = int((counts > self.config.data.max_length).sum())
        cut = f"; {longer:,} texts were cut" if longer else ""
        self.notes.append(
            f"{split}: {len(examples.lengths):,} pairs; chosen answers have {chosen:,.1f} tokens "
            f"on average, rejected ones {rejected:,.1f}{cut}"
        )

    def reference(self) -> Measurement | None:
        """What the network before tuning says of both answers, [pairs, 2], where it is needed."""
        if not self._kind.needs_reference:
            return None
        names = [name for name in self.examples if name != "train" or not self.compares_live]
        examples = {name: self.examples[name] for name in names}
        return Measurement(examples, self.outputs, _logps)

    def with_reference(self, found: Mapping[str, np.ndarray]) -> Self:
        """The same, with what `reference` measured."""
        other = self.with_examples(
            {
                name: dataclasses.replace(cast(PairExamples, examples), reference=found.get(name))
                for name, examples in self.examples.items()
            }
        )
        other._reference = dict(found)
        return other

    def loss(self, forward: Forward) -> LossSums:
        """The mean over pairs, and TRL's metrics of them."""
        batch = forward.batch
        real = jnp.any(batch["weights"] > 0, axis=-1)
        reference = batch.get("reference_logps")
        if self.compares_live:
            before = pair_sums(forward.base()(batch), batch)
            reference = jax.lax.stop_gradient(_logps_of(before))
        if reference is not None:
            reference = jnp.where(real[:, None], reference, 0.0)
        sums = pair_sums(forward.outputs, batch)
        found = self._of_pairs(pairs_of(sums, reference))
        count = jnp.sum(real.astype(jnp.float32))
        metrics = {n: (jnp.sum(jnp.where(real, x, 0.0)), count) for n, x in found.items()}
        total, weight = metrics.pop("loss")
        for name, at in (("logits/chosen", 2), ("logits/rejected", 5)):
            metrics[name] = (jnp.sum(sums[:, at]), jnp.sum(sums[:, at - 1]))
        metrics["mean_token_accuracy"] = (jnp.sum(sums[:, 6]), jnp.sum(sums[:, 1]))
        return total, weight, metrics

    @staticmethod
    def outputs(network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """See `pair_sums`, [rows, 9]."""
        return pair_sums(network(batch), batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """TRL's metrics of pairs."""
        found = self._of_outputs(split, outputs)
        means = {name: float(values.mean()) for name, values in found.items()}
        sums = outputs.astype(np.float64).sum(0)
        return {
            **means,
            "logits/chosen": sums[2] / sums[1],
            "logits/rejected": sums[5] / sums[4],
            "mean_token_accuracy": sums[6] / sums[1],
        }

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Over pairs."""
        found = self._of_outputs("test", outputs["test"])
        names = ("loss", "rewards/accuracies", "rewards/margins")
        return {name: interval_of_mean(found[name]) for name in names}

    def alarm(self, metrics: Mapping[str, float]) -> str | None:
        """Says so where chosen answers have lost much, as they often do beside rejected ones."""
        fell = -metrics.get("validation/logps/chosen_change", 0.0)
        if fell <= self.config.objective.chosen_alarm:
            return None
        return (
            f"The chosen answers have become less likely by {fell:.1f} nats on average: the "
            "network moves away from both. Train less, raise config.objective.beta, or learn the "
            "chosen answers as well (loss_type cpo or orpo)."
        )

    def _of_outputs(self, split: str, outputs: np.ndarray) -> dict[str, np.ndarray]:
        reference = self._reference.get(split)
        sums = jnp.asarray(outputs)
        pairs = pairs_of(sums, None if reference is None else jnp.asarray(reference))
        found = self._of_pairs(pairs)
        return {name: np.asarray(values, np.float64) for name, values in found.items()}

    def _of_pairs(self, pairs: Pairs) -> dict[str, jax.Array]:
        """Loss and metrics of each pair, float32 [pairs]."""
        settings = self.config.objective
        chosen, rejected = (settings.beta * reward for reward in self._kind.rewards(pairs))
        found = {
            "loss": self._kind.loss(pairs, settings),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
            "rewards/margins": chosen - rejected,
            "logps/chosen": pairs.chosen.logps,
            "logps/rejected": pairs.rejected.logps,
        }
        if self._kind.needs_reference:
            found["logps/chosen_change"] = pairs.ratios[0]
        return found


@dataclasses.dataclass(frozen=True)
class PairExamples(ExamplesAround):
    """Rows with two answers; see `Examples`.

    Attributes:
        examples: the rows; the chosen text is segment 1 and the rejected one 2.
        reference: float32 [examples, 2], what the network before tuning says of the answers, for
            losses that need it.
    """

    examples: SupervisedExamples
    reference: np.ndarray | None = None

    def batch(self, indices: np.ndarray, *, rows: int, length: int) -> Batch:
        """As of the rows, and perhaps `reference_logps` float32 [rows, 2].

        The weights of a row sum to 1: a pair counts once, however long its answers are.
        """
        batch = self.examples.batch(indices, rows=rows, length=length)
        batch["weights"] /= np.maximum(batch["weights"].sum(1, keepdims=True), 1.0)
        if self.reference is not None:
            # Rows that only fill up have id -1 and no weight, whatever stands there.
            batch["reference_logps"] = self.reference[batch["example_ids"]]
        return batch


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
