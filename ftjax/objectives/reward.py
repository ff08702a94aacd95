"""A reward model: a number for each answer, learned from which of two people preferred."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.dialogues import read_chats
from ftjax.data.examples import Examples
from ftjax.data.numbers import encode_numbers
from ftjax.data.sources import Records
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import numbers
from ftjax.losses.forward import Forward
from ftjax.losses.reward import pair_losses, pair_metrics
from ftjax.models import family_of
from ftjax.models.heads import PublishedClassifier, RewardModel
from ftjax.models.layers import Network
from ftjax.objectives.base import LossSums, Say
from ftjax.objectives.fields import metric_field
from ftjax.objectives.pairs import (
    PAIR_FIELDS,
    PREFERRED,
    PairExamples,
    PairObjective,
)
from ftjax.pretrained import classifier
from ftjax.pretrained.checkpoint import Checkpoint, read_config
from ftjax.pretrained.compare import merged_and_compared, outputs_on_example
from ftjax.progress import timed
from ftjax.randomness import run_key

METRICS = {"accuracy": "higher", "margin": "higher", "loss": "lower"}
"""By TRL's names -> which way is better."""
CLASSES = ("reward",)


class Reward(PairObjective):
    """Gives answers a number, larger for those that people preferred; see `Objective`.

    The network is the family's own classifier of texts with one logit, and is exported as that.
    """

    metrics: ClassVar = METRICS
    has_new_head = True
    keeps_features = False
    column_names: ClassVar = (*PairObjective.column_names, "margin")
    fields: ClassVar[Fields] = {
        **PAIR_FIELDS,
        **PREFERRED,
        "data.margin_field": Field(
            None,
            "Column with a number: by how much the chosen answer should be ahead.",
            optional=str,
        ),
        "objective.center_rewards_coefficient": Field(
            0.0, "Weight of a pull of rewards towards 0 on average, such as 0.01.", minimum=0.0
        ),
        "optimizer.head_learning_rate_factor": Field(
            1.0, "The new head's learning rate, relative to the rest.", above=0.0, maximum=1e4
        ),
        **metric_field(metrics, "accuracy"),
    }

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        """As `Objective`.

        Raises:
            ValueError: a network that does not read two texts in a row, or has no such classifier.
        """
        super().__init__(config, folder, facts)
        # Of both answers of the test split.
        self._tokens = np.zeros((0, 2))
        networks = family_of(read_config(folder).get("model_type", "")).networks
        if "causal_lm" not in networks or classifier.NETWORK not in networks:
            raise ValueError(
                f"{config.model.reference} is no decoder with a published classifier; a reward "
                "model is made of one, such as Llama, Qwen, Gemma or SmolLM2."
            )

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """A comparison with rewards that mean nothing."""
        if config.penalties.get("kl_to_base", 0.0) > 0:
            return (
                "config.penalties.kl_to_base compares with the rewards before tuning, which a new "
                "head gives at random; leave it at 0."
            )
        return None

    @property
    def needs_reference(self) -> bool:
        """Never."""
        return False

    @property
    def network_name(self) -> str:
        """The classifier that decoders are published with."""
        return classifier.NETWORK

    def checkpoint(self, say: Say) -> Path | Checkpoint:
        """The folder, with a head of one logit that is newly initialised if it has none."""
        return classifier.classifier_checkpoint(
            self.folder,
            CLASSES,
            int(self.tokenizer.pad_token_id),
            run_key(self.config.seed, "head"),
            accept_fields=tuple(self.config.model.accept_fields),
        )

    def network(self, backbone: Network) -> RewardModel:
        """The classifier, called with rows of two texts."""
        return RewardModel(backbone)

    def read_split(self, split: str) -> PairExamples:
        """Pairs, rendered and tokenised, one a row; perhaps with `margins`."""
        records = self.load(split, self.columns)
        margins = None
        if self.config.data.margin_field is not None:
            margins = encode_numbers(records, "margin").astype(np.float32)
            records = records.without("margin")
        found = self.read_preferred(split, records)
        if split == "test":
            self._tokens = found.answer_tokens
        return found if margins is None else found.with_columns(margins=margins)

    def loss(self, forward: Forward) -> LossSums:
        """The mean over pairs, and TRL's metrics of them."""
        batch = forward.batch
        real = jnp.any(batch["weights"] > 0, axis=-1)
        # Before the loss: its derivative at what is no number is none.
        rewards = jnp.where(real[:, None], forward.outputs, 0.0)
        margins = batch.get("margins")
        if margins is not None:
            margins = jnp.where(real, margins, 0.0)
        count = jnp.sum(real.astype(jnp.float32))

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(real, values, 0.0))

        found = pair_metrics(rewards)
        metrics = {name: (total(values), count) for name, values in found.items()}
        return total(self._losses(rewards, margins)), count, metrics

    def _losses(self, rewards: jax.Array, margins: jax.Array | None) -> jax.Array:
        centering = self.config.objective.center_rewards_coefficient
        return pair_losses(rewards, margins, centering=centering)

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """Half the squared difference of the margins."""
        one, other = (rewards[:, :1] - rewards[:, 1:] for rewards in (first, second))
        return numbers.divergence(one, other, jnp.sum(weights, axis=-1))

    @staticmethod
    def outputs(network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Rewards, [rows, 2]."""
        return network(batch)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """TRL's metrics; `loss` with margins where the data have them."""
        found = self._of_outputs(split, outputs)
        means = {name: float(values.mean()) for name, values in found.items()}
        return {**means, "min_reward": float(outputs.min()), "max_reward": float(outputs.max())}

    def _of_outputs(self, split: str, outputs: np.ndarray) -> dict[str, np.ndarray]:
        rewards = jnp.asarray(outputs)
        margins = self.pair_examples(split).columns.get("margins")
        losses = self._losses(rewards, None if margins is None else jnp.asarray(margins))
        found = {"loss": losses, **pair_metrics(rewards)}
        return {name: np.asarray(values, np.float64) for name, values in found.items()}

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Over pairs."""
        found = self._of_outputs("test", outputs["test"])
        return {name: interval_of_mean(found[name]) for name in METRICS}

    @property
    def has_baselines(self) -> bool:
        """Whoever prefers the longer answer."""
        return True

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """How often the longer answer, in tokens, is the chosen one; half of those as long."""
        longer = np.sign(self._tokens[:, 0] - self._tokens[:, 1])
        return {"longer_answer": {"accuracy": float((longer + 1).mean() / 2)}}

    def retention(self) -> None:
        """It writes no text."""
        return

    def general_text(self, records: Records) -> Examples:
        """None: a row is a pair.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "A reward model reads pairs of answers and has no use for general text; leave "
            "config.penalties.ewc and replay at 0."
        )

    def export(self, network: Network, folder: str | Path) -> None:
        """The family's own classifier of one logit; see `export_classifier`."""
        with timed("Merging and comparing"):
            expected = outputs_on_example(PublishedClassifier(network.backbone), self.folder)
            merged_and_compared(network, self.folder)
        with timed("Writing, loading again and comparing"):
            classifier.export_classifier(
                PublishedClassifier(network.backbone),
                self.folder,
                folder,
                classes=CLASSES,
                problem_type="regression",
                pad_token=str(self.tokenizer.pad_token),
                longest_row=self.config.data.max_length,
                expected=expected,
                accept_fields=tuple(self.config.model.accept_fields),
            )
        self.write_template(folder)

    @property
    def prediction_fields(self) -> dict[str, str]:
        """A prompt and its answer."""
        return {"text": "prompt", "second_text": "completion"}

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """Prompts (`text`, a text or messages) with their answers (`second_text`).

        Raises:
            ValueError: a record without an answer, or that is no prompt with an answer.
        """
        rows = [{"prompt": r["text"], "completion": r.get("second_text")} for r in records]
        if any(row["completion"] is None for row in rows):
            raise ValueError("A reward is of an answer: give the prompt as text, and the answer.")
        if self.facts["chats"]:
            rows = [{name: _as_message(name, value) for name, value in row.items()} for row in rows]
        found = read_chats(some := Records("answers", rows), "prompt_completion")
        texts = self.marked("answers", some, found, answers_only=True)
        return self.paired("answers", some, [texts, texts])

    def predictions(self, outputs: np.ndarray, examples: Examples) -> list[dict[str, Any]]:
        """`reward`; only differences between answers to one prompt mean something."""
        return [{"reward": float(f"{value:.6g}")} for value in outputs[:, 0]]


def _as_message(name: str, value: Any) -> Any:
    """What was given as a text to a run that learned from chats."""
    role = "user" if name == "prompt" else "assistant"
    return [{"role": role, "content": value}] if isinstance(value, str) else value
