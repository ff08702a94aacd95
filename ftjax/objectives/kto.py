"""KTO: answers that people liked become likelier, and those that they did not less.

(Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306.)
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import roc_auc_score

from ftjax.data.preferences import read_judged, with_other_answers
from ftjax.data.sources.records import BadDataError
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.fields import Field, Fields, Settings
from ftjax.losses.forward import Forward
from ftjax.losses.preference import kto, pair_sums
from ftjax.objectives.base import LossSums
from ftjax.objectives.fields import metric_field
from ftjax.objectives.pairs import PAIR_FIELDS, REFERENCE, PairExamples, PairObjective

METRICS = {
    "loss": "lower",
    "rewards/margins": "higher",
    "rewards/roc_auc": "higher",
    "rewards/chosen": "higher",
    "rewards/rejected": "lower",
    "logps/chosen": "higher",
    "logps/rejected": "lower",
}
"""By TRL's names -> which way is better."""

# Of the weights of liked answers to those of the others, that the paper recommends (section 4.2).
RATIOS = (1.0, 4 / 3)
# A share of no rows is 0, and no number divided by nothing.
NONE = 1e-30


class Kto(PairObjective):
    """Learns from answers that people liked or not, one at a time; see `Objective`.

    Beside each answer stands another prompt's, which says how far the network has gone from its
    start. Which one is drawn with the run's seed among all of the split.
    """

    metrics: ClassVar = METRICS
    rows_meet: ClassVar = True
    fields: ClassVar[Fields] = {
        **PairObjective.fields,
        **PAIR_FIELDS,
        **REFERENCE,
        "objective.beta": Field(
            0.1, "The larger, the closer to the network before tuning.", above=0.0
        ),
        "objective.desirable_weight": Field(1.0, "Of answers that people liked.", above=0.0),
        "objective.undesirable_weight": Field(1.0, "Of the other answers.", above=0.0),
        "data.prompt_field": Field("prompt", "Column with what is answered: a text, or messages."),
        "data.completion_field": Field("completion", "Column with the answer, of the same kind."),
        "data.label_field": Field("label", "Column that says whether it was liked: true or false."),
        **metric_field(metrics, "loss"),
    }
    text_names: ClassVar = ("answer", "answer of another prompt")
    column_names: ClassVar = ("prompt", "completion", "label", "tools")

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """A batch in which no answer has another beside it."""
        if config.data.batch_size < 2:
            return (
                "config.data.batch_size = 1: KTO compares answers with those of other prompts in "
                "the batch; take 2 at least, better 8 or more."
            )
        return None

    @property
    def needs_reference(self) -> bool:
        """Always."""
        return True

    def read_split(self, split: str) -> PairExamples:
        """Answers, each with one of another prompt behind its own.

        Raises:
            BadDataError: a split with answers of one kind only.
        """
        records = self.load(split, self.columns)
        judged = read_judged(records)
        desirable = np.asarray([one.desirable for one in judged])
        count, liked = len(judged), int(desirable.sum())
        if liked in (0, count):
            raise BadDataError(
                f"{records.name}: all {count:,} labels are {bool(liked)}. KTO needs answers that "
                "people liked and others; take sft for answers that are all good."
            )
        chosen = np.flatnonzero(desirable)
        found = [judged[index].answered for index in chosen]
        self.draw_asked(split, records.chosen(chosen), found)
        others = with_other_answers(judged, partners_of(count, self.config.seed))
        texts = [
            self.marked(split, records, some, answers_only=True)
            for some in ([one.answered for one in judged], others)
        ]
        self.notes.append(f"{split}: {count:,} answers, {liked:,} of them liked")
        if split == "train":
            self._note_weights(liked, count - liked)
        found = self.paired(split, records, texts)
        return found.with_columns(desirable=desirable.astype(np.int32))

    def _note_weights(self, liked: int, others: int) -> None:
        settings = self.config.objective
        ratio = settings.desirable_weight * liked / (settings.undesirable_weight * others)
        low, high = RATIOS
        if not low - 0.01 <= ratio <= high + 0.01:
            self.notes.append(
                f"train: liked answers weigh {ratio:.2f} times the others, with their numbers; the "
                f"paper recommends {low:g} to {high:.2f}: config.objective.desirable_weight from "
                f"{settings.desirable_weight * low / ratio:.2f} to "
                f"{settings.desirable_weight * high / ratio:.2f}"
            )

    def loss(self, forward: Forward) -> LossSums:
        """The mean over answers, and TRL's metrics of them."""
        batch = forward.batch
        real = jnp.any(batch["weights"] > 0, axis=-1)
        sums = pair_sums(forward.outputs, batch)
        found, divergence = self._of_rows(
            sums, self.reference_in(forward, real), real, batch["desirable"] > 0
        )
        count = jnp.sum(real.astype(jnp.float32))
        metrics = {
            name: (jnp.sum(jnp.where(rows, values, 0.0)), jnp.sum(rows.astype(jnp.float32)) + NONE)
            for name, (values, rows) in found.items()
        }
        total, _ = metrics.pop("loss")
        metrics["kl"] = (divergence * count, count)
        metrics["mean_token_accuracy"] = (jnp.sum(sums[:, 6]), jnp.sum(sums[:, 1]))
        return total, count, metrics

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """TRL's metrics, and how well rewards tell liked answers from others (`roc_auc`)."""
        found, divergence = self._of_outputs(split, outputs)
        means = {name: float(values[rows].mean()) for name, (values, rows) in found.items()}
        rewards = np.where(found["rewards/chosen"][1], *(found[n][0] for n in REWARDS))
        sums = outputs.astype(np.float64).sum(0)
        return {
            **means,
            "rewards/margins": means["rewards/chosen"] - means["rewards/rejected"],
            "rewards/roc_auc": float(roc_auc_score(found["rewards/chosen"][1], rewards)),
            "kl": divergence,
            "mean_token_accuracy": sums[6] / sums[1],
        }

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Over answers."""
        found, _ = self._of_outputs("test", outputs["test"])
        return {
            name: interval_of_mean(values[rows])
            for name, (values, rows) in found.items()
            if name in ("loss", *REWARDS)
        }

    def _of_outputs(
        self, split: str, outputs: np.ndarray
    ) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]:
        labels = self.pair_examples(split).columns["desirable"]
        found, divergence = self._of_rows(
            jnp.asarray(outputs),
            self.reference_of(split),
            jnp.ones(len(outputs), bool),
            jnp.asarray(labels > 0),
        )
        return {
            name: (np.asarray(values, np.float64), np.asarray(rows))
            for name, (values, rows) in found.items()
        }, float(divergence)

    def _of_rows(
        self, sums: jax.Array, reference: jax.Array | None, real: jax.Array, liked: jax.Array
    ) -> tuple[dict[str, tuple[jax.Array, jax.Array]], jax.Array]:
        """Name -> values float32 [rows] and which of them it is about; the divergence."""
        assert reference is not None
        settings = self.config.objective
        ratios, others = sums[:, 0] - reference[:, 0], sums[:, 3] - reference[:, 1]
        count = jnp.maximum(jnp.sum(real.astype(jnp.float32)), 1.0)
        divergence = jnp.maximum(jnp.sum(jnp.where(real, others, 0.0)) / count, 0.0)
        rewards = settings.beta * ratios
        good, bad = real & liked, real & ~liked
        return {
            "loss": (kto(ratios, liked, divergence, settings), real),
            "rewards/chosen": (rewards, good),
            "rewards/rejected": (rewards, bad),
            "logps/chosen": (sums[:, 0], good),
            "logps/rejected": (sums[:, 0], bad),
            "logps/chosen_change": (ratios, good),
        }, jax.lax.stop_gradient(divergence)


REWARDS = ("rewards/chosen", "rewards/rejected")


def partners_of(count: int, seed: int) -> np.ndarray:
    """For each of so many another one, each once, int [count]."""
    order = np.random.default_rng([seed, count]).permutation(count)
    partners = np.empty(count, np.int64)
    partners[order] = np.roll(order, 1)
    return partners
