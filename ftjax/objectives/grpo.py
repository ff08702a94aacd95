"""GRPO and what followed it: the network answers, and what is rewarded becomes likelier.

(Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300.)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.chat import Dialogue, render
from ftjax.data.dialogues import messages_of
from ftjax.data.examples import Batch, Examples, TextExamples, packed_examples
from ftjax.data.rewards import (
    SCALES,
    RewardFunction,
    advantages,
    asked_of,
    reward_functions,
    sha256_of_functions,
    summed,
)
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadRecordError, bad_record, of_each
from ftjax.data.text import UnknownTokens, encode_prompt, encode_rendered, joined_tokens
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.evaluation.retention import TEXT_FIELDS
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import policy
from ftjax.losses.forward import Forward
from ftjax.models.generate import max_positions, write
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Network
from ftjax.models.rollout import NOTHING, Completions, draw, draw_exactly, log_probabilities
from ftjax.objectives.base import LossSums
from ftjax.objectives.chats import TEMPLATE, ChatObjective
from ftjax.objectives.fields import LOGITS_AT_ONCE, metric_field
from ftjax.objectives.rollout import Rollout

METRICS = {
    "reward": "higher",
    "completions/mean_length": "lower",
    "completions/clipped_ratio": "lower",
}
"""Of the completions that the network holds likeliest; by TRL's names."""
WAYS = {"cached": draw, "exact": draw_exactly}
# Of the test split's completions, with the result.
SHOWN = 10


class Grpo(ChatObjective):
    """Learns from rewards of its own completions, compared within a prompt; see `Objective`."""

    metrics: ClassVar = METRICS
    fields: ClassVar[Fields] = {
        **LOGITS_AT_ONCE,
        **TEXT_FIELDS,
        **TEMPLATE,
        "data.prompt_field": Field("prompt", "Column with what is answered: a text, or messages."),
        "data.reward_columns": Field(
            (), "Further columns, which reward functions are given by their names.", items=str
        ),
        "data.max_prompt_length": Field(256, "Most tokens of a prompt.", minimum=3),
        "objective.reward_funcs": Field(
            (),
            "Functions of yours, 'file.py:name', called with prompts, completions and the columns.",
            items=str,
            required=True,
        ),
        "objective.reward_weights": Field(
            (), "Of the functions, in their order; all 1 by default.", items=float
        ),
        "objective.num_generations": Field(
            8, "Completions of each prompt, which are compared.", minimum=2
        ),
        "objective.max_completion_length": Field(256, "Most tokens of a completion.", minimum=1),
        "objective.temperature": Field(
            1.0,
            "Logits are divided by it, where tokens are drawn and where they are learned.",
            above=0.0,
        ),
        "objective.sampling": Field(
            "cached",
            "Draw with a cache of keys and values, or each token by a whole pass, as in training.",
            choices=tuple(WAYS),
        ),
        "objective.loss_type": Field(
            "dapo", "What the mean is over, by TRL's names.", choices=tuple(policy.LOSS_TYPES)
        ),
        "objective.scale_rewards": Field(
            "group", "Whose standard deviation rewards are divided by.", choices=SCALES
        ),
        "objective.epsilon": Field(
            0.2, "How far a probability may fall before it is clipped.", above=0.0, below=1.0
        ),
        "objective.epsilon_high": Field(
            None, "How far it may rise; None: as far.", optional=float, above=0.0
        ),
        "objective.beta": Field(
            0.0, "Weight of the divergence from the network before tuning.", minimum=0.0
        ),
        "objective.num_iterations": Field(1, "Updates from the same completions.", minimum=1),
        "objective.mask_truncated_completions": Field(
            False, "Learn nothing from completions that do not end."
        ),
        # Which tokens it will write, no split says.
        "tuning.embedding_rows": None,
        **metric_field(METRICS, "reward"),
    }

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        # Split -> of each example its prompt, as it came, and its columns.
        self._prompts: dict[str, list[Any]] = {}
        self._columns: dict[str, dict[str, list[Any]]] = {}
        # Of the completions that were measured last, what functions said: they may take long.
        self._last: tuple[bytes, np.ndarray] = (b"", np.zeros(0))
        # A finished run is used without them.
        self._functions: list[RewardFunction] = (
            reward_functions(config.objective.reward_funcs) if facts is None else []
        )

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """Weights without a function, or a column that would take another's name."""
        functions, weights = config.objective.reward_funcs, config.objective.reward_weights
        if weights and len(weights) != len(functions):
            return (
                f"config.objective.reward_weights has {len(weights)} numbers for {len(functions)} "
                "functions of config.objective.reward_funcs."
            )
        if taken := {"prompts", "completions"} & set(config.data.reward_columns):
            return (
                f"config.data.reward_columns names {taken.pop()!r}, which reward functions are "
                "given anyway; leave it out, or rename the column."
            )
        return None

    @property
    def columns(self) -> dict[str, str]:
        """Our names -> columns."""
        own = {name: name for name in self.config.data.reward_columns}
        return {**own, "prompt": self.config.data.prompt_field}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the functions' files."""
        return {"reward functions": sha256_of_functions(self._functions)}

    def read_split(self, split: str) -> TextExamples:
        """Prompts, one a row.

        Raises:
            BadRecordError: a prompt that is empty, too long, or asks for nothing.
        """
        records, data = self.load(split, self.columns), self.config.data
        rows, most = self._encoded(records), data.max_prompt_length
        long = {
            index: f"{records.where(index)}: the prompt has {len(row):,} tokens, and "
            f"config.data.max_prompt_length = {most:,}. Raise that, or leave the record out."
            for index, row in enumerate(rows)
            if len(row) > most
        }
        if long:
            raise BadRecordError(long)
        self._prompts[split] = [record["prompt"] for record in records]
        self._columns[split] = {
            name: [record[name] for record in records] for name in data.reward_columns
        }
        tokens = joined_tokens(
            [np.asarray(row, np.int32) for row in rows], None, 0, UnknownTokens(self.tokenizer)
        )
        self.notes.append(
            f"{split}: {len(rows):,} prompts of {tokens.lengths.mean():,.1f} tokens on average"
        )
        pad: Any = self.tokenizer.pad_token_id
        buckets = sorted({max(-(-most // part), 3) for part in (2, 1)})
        return TextExamples(tokens, buckets, 0 if pad is None else pad, records.fingerprint)

    def _encoded(self, records: Records) -> list[list[int]]:
        """Token ids of each prompt, as a network is asked."""
        found = of_each(records, lambda index: _prompt(records, index))
        chats = [index for index, prompt in enumerate(found) if not isinstance(prompt, str)]
        rendered = {}
        if chats:
            texts = render(
                self.template(),
                [Dialogue(found[index]) for index in chats],
                add_generation_prompt=True,
                where=lambda number: records.where(chats[number]),
            )
            rendered = {index: text.text for index, text in zip(chats, texts, strict=True)}
        return [
            encode_rendered(self.tokenizer, rendered[index])
            if index in rendered
            else encode_prompt(self.tokenizer, prompt)
            for index, prompt in enumerate(found)
        ]

    def network(self, backbone: Network) -> LanguageModel:
        """The published network with its published head.

        Raises:
            ValueError: prompts and completions longer than the network has positions for.
        """
        most, new = max_positions(backbone), self.config.objective.max_completion_length
        prompt = self.config.data.max_prompt_length
        if most is not None and prompt + new > most:
            raise ValueError(
                f"Completions of {new} tokens (config.objective.max_completion_length) behind "
                f"prompts of {prompt} (config.data.max_prompt_length) do not fit the {most} "
                "positions of the network; lower one of them."
            )
        return super().network(backbone)

    @property
    def compares_live(self) -> bool:
        """With a divergence in the loss."""
        return self.config.objective.beta > 0

    def rollout(self) -> Rollout:
        """Completions of the prompts of a batch, rewarded."""
        settings = self.config.objective
        repeated = settings.num_iterations > 1
        score = self._scored if repeated else None
        return Rollout(
            self._drawn, self._rewarded, settings.num_generations, settings.num_iterations, score
        )

    def _drawn(
        self, network: Network, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> Completions:
        settings = self.config.objective
        return WAYS[settings.sampling](
            network,
            batch["input_ids"],
            batch["attention_mask"],
            keys,
            max_new_tokens=settings.max_completion_length,
            temperature=settings.temperature,
            stop_token_ids=tuple(self._defaults.stop_token_ids),
        )

    def _rewarded(self, batch: Batch, outputs: Completions) -> Batch:
        """What a step learns from: prompts with their completions, and what these are worth."""
        settings, tokens = self.config.objective, np.asarray(outputs.tokens)
        real = batch["example_ids"] >= 0
        ended = np.any(np.isin(tokens, list(self._defaults.stop_token_ids)), axis=1)
        of_functions = np.full((len(tokens), len(self._functions)), np.nan)
        of_functions[real] = self._worth("train", batch["example_ids"][real], tokens[real])
        rewards = np.zeros(len(tokens))
        rewards[real] = summed(of_functions[real], self._weights)
        gains, deviations = np.zeros(len(tokens)), np.zeros(len(tokens))
        group = settings.num_generations
        grouped = advantages(rewards[real].reshape(-1, group), settings.scale_rewards)
        gains[real], deviations[real] = grouped[0].ravel(), np.repeat(grouped[1], group)
        counts = (tokens != NOTHING) & real[:, None]
        learned = counts
        if settings.mask_truncated_completions:
            learned = counts & ended[:, None]
        found = _rows_of(batch, tokens, np.asarray(outputs.logps), learned)
        columns = {
            "advantages": gains,
            "rewards": rewards,
            "reward_deviations": deviations,
            "completion_lengths": counts.sum(1),
            "truncated": ~ended,
            **{
                f"rewards/{one.name}": np.nan_to_num(of_functions[:, n])
                for n, one in enumerate(self._functions)
            },
        }
        return found | {name: values.astype(np.float32) for name, values in columns.items()}

    def _scored(self, network: Network, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What tokens were drawn with, as training says it."""
        temperature = self.config.objective.temperature
        return {"old_logps": log_probabilities(network(batch), batch["labels"], temperature)[0]}

    @property
    def _weights(self) -> Sequence[float]:
        return self.config.objective.reward_weights or (1.0,) * len(self._functions)

    def _worth(self, split: str, examples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What each function says of completions of a split's prompts, [rows, functions]."""
        prompts = [self._prompts[split][index] for index in examples]
        texts: list[Any] = self._texts(tokens)
        texts = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        columns = {
            name: [values[index] for index in examples]
            for name, values in self._columns[split].items()
        }
        return asked_of(self._functions, prompts, texts, columns)

    def _of_split(self, split: str, outputs: np.ndarray) -> np.ndarray:
        """What each function says of a completion of each prompt, [examples, functions]."""
        asked = split.encode() + outputs.tobytes()
        if self._last[0] != asked:
            self._last = asked, self._worth(split, np.arange(len(outputs)), outputs)
        return self._last[1]

    def _texts(self, tokens: np.ndarray) -> list[str]:
        rows = [[int(token) for token in row if token >= 0] for row in tokens]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def loss(self, forward: Forward) -> LossSums:
        """The clipped surrogate, and TRL's metrics of completions."""
        batch, settings = forward.batch, self.config.objective
        counts = batch["weights"] > 0
        labels = jnp.where(counts, batch["labels"], 0)
        logps, entropy = log_probabilities(forward.outputs, labels, settings.temperature)
        # Of completions that were just drawn the ratio is 1 by construction.
        old = batch.get("old_logps", jax.lax.stop_gradient(logps))
        drawn = policy.Drawn(logps, old, counts, _chosen(batch["advantages"], counts))
        high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
        losses, clipped = policy.clipped(drawn, settings.epsilon, high)
        tokens = jnp.sum(counts.astype(jnp.float32))
        metrics = {
            "clip_ratio/region_mean": (jnp.sum(clipped), tokens),
            "entropy": (jnp.sum(jnp.where(counts, entropy, 0.0)), tokens),
            **self._of_completions(batch, old),
        }
        if settings.beta > 0:
            reference, _ = log_probabilities(
                forward.base()(batch, key=None), labels, settings.temperature
            )
            apart = policy.divergence(drawn, jax.lax.stop_gradient(reference))
            losses += settings.beta * apart
            metrics["kl"] = (jnp.sum(apart), tokens)
        longest = settings.max_completion_length
        total, weight = policy.LOSS_TYPES[settings.loss_type](losses, counts, longest)
        return total, weight, metrics

    def _of_completions(
        self, batch: Mapping[str, jax.Array], old: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Of whole rows, each a sum and a count."""
        counts = batch["weights"] > 0
        rows = jnp.any(counts, axis=1)
        count = jnp.sum(rows.astype(jnp.float32))
        apart = jnp.where(counts, jnp.abs(old - batch["sampling_logps"]), 0.0)
        names = {
            "reward": "rewards",
            "reward_std": "reward_deviations",
            "completions/mean_length": "completion_lengths",
            "completions/clipped_ratio": "truncated",
            **{f"rewards/{one.name}": f"rewards/{one.name}" for one in self._functions},
        }
        found = {name: _chosen(batch[array], counts) for name, array in names.items()}
        found["frac_reward_zero_std"] = (found["reward_std"] == 0) & rows
        found["sampling/logp_difference/max"] = jnp.max(apart, axis=1)
        of_rows = {name: (jnp.sum(values), count) for name, values in found.items()}
        tokens = jnp.sum(counts.astype(jnp.float32))
        return of_rows | {"sampling/logp_difference/mean": (jnp.sum(apart), tokens)}

    def general_text(self, records: Records) -> Examples:
        """Packed, all of it to be predicted."""
        length = self.config.data.max_prompt_length + self.config.objective.max_completion_length
        return packed_examples(records, self.tokenizer, length)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The completion that is held likeliest, [rows, tokens]; -1 behind its end."""
        settings = self.config.objective
        found = write(
            network.backbone,
            batch["input_ids"],
            batch["attention_mask"],
            max_new_tokens=settings.max_completion_length,
            stop_token_ids=self._defaults.stop_token_ids,
        )
        # float32 holds every id below 2**24.
        return found.astype(jnp.float32)

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Rewards, and how long completions are."""
        rewards = self._of_split(split, outputs)
        lengths = (outputs >= 0).sum(1)
        return {
            "reward": float(summed(rewards, self._weights).mean()),
            "completions/mean_length": float(lengths.mean()),
            "completions/clipped_ratio": float((lengths == outputs.shape[1]).mean()),
            **{
                f"rewards/{one.name}": float(np.nan_to_num(rewards[:, n]).mean())
                for n, one in enumerate(self._functions)
            },
        }

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Over prompts."""
        rewards = summed(self._of_split("test", outputs["test"]), self._weights)
        return {"reward": interval_of_mean(rewards)}

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Some of the test split's completions, with their rewards."""
        rewards = summed(self._of_split("test", outputs["test"]), self._weights)
        texts = self._texts(outputs["test"][:SHOWN])
        rows = zip(self._prompts["test"], texts, rewards, strict=False)
        return {
            "completions": [
                {"prompt": prompt, "completion": text, "reward": float(reward)}
                for prompt, text, reward in rows
            ]
        }


def _prompt(records: Records, index: int) -> Any:
    """A text, or messages of which the last is not the assistant's.

    Raises:
        BadRecordError: it is none.
    """
    prompt = records[index]["prompt"]
    if isinstance(prompt, str):
        if not prompt.strip():
            raise bad_record(records, index, "the prompt is empty, and nothing answers nothing.")
        return prompt
    try:
        messages = messages_of(prompt, "prompt")
    except ValueError as error:
        raise bad_record(records, index, str(error)) from error
    if messages[-1]["role"] == "assistant":
        raise bad_record(
            records, index, "the last message is the assistant's, so that nothing is asked."
        )
    return messages


def _rows_of(batch: Batch, tokens: np.ndarray, logps: np.ndarray, learned: np.ndarray) -> Batch:
    """Prompts, each with its completion behind it, for next-token prediction."""
    rows, length = batch["input_ids"].shape
    shape = (rows, length + tokens.shape[1])
    names = ("input_ids", "segment_ids", "position_ids", "labels")
    found: Batch = {name: np.zeros(shape, np.int32) for name in names}
    found |= {name: np.zeros(shape, np.float32) for name in ("weights", "sampling_logps")}
    found["example_ids"] = batch["example_ids"]
    for row, mask in enumerate(batch["attention_mask"]):
        prompt, new = int(mask.sum()), int((tokens[row] != NOTHING).sum())
        end = prompt + new
        found["input_ids"][row, :prompt] = batch["input_ids"][row, :prompt]
        found["input_ids"][row, prompt:end] = tokens[row, :new]
        found["segment_ids"][row, :end] = 1
        found["position_ids"][row, :end] = np.arange(end)
        # What predicts a token stands one place before it.
        here = slice(prompt - 1, end - 1)
        found["labels"][row, here] = tokens[row, :new]
        found["sampling_logps"][row, here] = logps[row, :new]
        found["weights"][row, here] = learned[row, :new]
    return found


def _chosen(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Values [rows] of rows in which something counts, else 0."""
    return jnp.where(jnp.any(counts, axis=1), values, 0.0)
