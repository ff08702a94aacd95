"""Preferences: which of two answers people liked better (DPO and what followed it)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.fields import Field, Fields
from ftjax.losses import preference
from ftjax.losses.forward import Forward
from ftjax.losses.preference import Pairs, pair_sums, pairs_of
from ftjax.objectives.base import LossSums
from ftjax.objectives.fields import metric_field
from ftjax.objectives.pairs import PAIR_FIELDS, PREFERRED, REFERENCE, PairExamples, PairObjective

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


class LossType(NamedTuple):
    """One way to learn from pairs.

    Attributes:
        fields: what it reads of a config.
        loss: (pairs, the `objective` part of the config) -> float32 [pairs].
        rewards: pairs -> what `beta` times is called a reward, (chosen, rejected).
        needs_reference: whether it compares with the network before tuning.
    """

    fields: Fields
    loss: Callable[[Pairs, Any], jax.Array]
    rewards: Callable[[Pairs], tuple[jax.Array, jax.Array]]
    needs_reference: bool


def _beta(default: float, meaning: str) -> Fields:
    return {"objective.beta": Field(default, meaning, above=0.0)}


PULL = "The larger, the closer to the network before tuning."
SCALE = "What log-probabilities are multiplied by."


LOSS_TYPES: Mapping[str, LossType] = {
    "sigmoid": LossType(_beta(0.1, PULL), preference.sigmoid, preference.ratios, True),
    "sigmoid_norm": LossType(_beta(5.0, PULL), preference.sigmoid_norm, preference.ratios, True),
    "ipo": LossType(_beta(0.1, PULL), preference.ipo, preference.ratios, True),
    "robust": LossType(
        {
            **_beta(0.1, PULL),
            "objective.label_smoothing": Field(
                0.1, "Share of preferences that are the wrong way round.", minimum=0.0, below=0.5
            ),
        },
        preference.robust,
        preference.ratios,
        True,
    ),
    "apo_zero": LossType(_beta(0.1, PULL), preference.apo_zero, preference.ratios, True),
    "orpo": LossType(
        _beta(0.1, "Weight of the odds (lambda in the paper)."),
        preference.orpo,
        preference.means,
        False,
    ),
    "simpo": LossType(
        {
            **_beta(2.0, SCALE),
            "objective.simpo_gamma": Field(1.0, "Margin that is wanted.", minimum=0.0),
        },
        preference.simpo,
        preference.means,
        False,
    ),
    "cpo": LossType(
        {
            **_beta(0.1, SCALE),
            "objective.cpo_alpha": Field(1.0, "Weight of the chosen answer's loss.", minimum=0.0),
        },
        preference.cpo,
        preference.sums,
        False,
    ),
}
"""By TRL's names (`loss_type` of its DPO and CPO trainers, and its ORPO trainer)."""


class Preference(PairObjective):
    """Makes chosen answers likelier than rejected ones; see `Objective`."""

    metrics: ClassVar = METRICS
    fields: ClassVar[Fields] = {
        **PairObjective.fields,
        **PAIR_FIELDS,
        "objective.loss_type": Field(
            "sigmoid",
            "What is learned from a pair, by TRL's names; sigmoid is DPO.",
            options={
                name: {**kind.fields, **(REFERENCE if kind.needs_reference else {})}
                for name, kind in LOSS_TYPES.items()
            },
        ),
        **PREFERRED,
        **metric_field(metrics, "loss"),
    }

    @property
    def _kind(self) -> LossType:
        return LOSS_TYPES[self.config.objective.loss_type]

    @property
    def needs_reference(self) -> bool:
        """By the kind of loss."""
        return self._kind.needs_reference

    def read_split(self, split: str) -> PairExamples:
        """Pairs, rendered and tokenised, one a row."""
        return self.read_preferred(split, self.load(split, self.columns))

    def loss(self, forward: Forward) -> LossSums:
        """The mean over pairs, and TRL's metrics of them."""
        batch = forward.batch
        real = jnp.any(batch["weights"] > 0, axis=-1)
        sums = pair_sums(forward.outputs, batch)
        found = self._of_pairs(pairs_of(sums, self.reference_in(forward, real)))
        count = jnp.sum(real.astype(jnp.float32))
        metrics = {n: (jnp.sum(jnp.where(real, x, 0.0)), count) for n, x in found.items()}
        total, weight = metrics.pop("loss")
        for name, at in (("logits/chosen", 2), ("logits/rejected", 5)):
            metrics[name] = (jnp.sum(sums[:, at]), jnp.sum(sums[:, at - 1]))
        metrics["mean_token_accuracy"] = (jnp.sum(sums[:, 6]), jnp.sum(sums[:, 1]))
        return total, weight, metrics

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

    def _of_outputs(self, split: str, outputs: np.ndarray) -> dict[str, np.ndarray]:
        found = self._of_pairs(pairs_of(jnp.asarray(outputs), self.reference_of(split)))
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
