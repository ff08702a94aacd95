"""Continuing a text: next-token prediction on packed rows."""

from pathlib import Path

import jax
import numpy as np
import transformers
from flax import nnx
from ml_collections import ConfigDict

from ftjax.data.batching import BatchPlan, plan_batches
from ftjax.data.packing import PackedText, next_token_batch, pack
from ftjax.data.sources import load_records
from ftjax.data.text import load_tokenizer, tokenize_documents
from ftjax.losses import tokens
from ftjax.models.heads import LanguageModel

SPLITS = ("train", "validation", "test")


class CausalLanguageModeling:
    """See `ftjax.tasks.Task`.

    Attributes:
        splits: "train", "validation" and "test", packed.
    """

    network_name = "causal_lm"
    baselines = None

    def __init__(self, config: ConfigDict, folder: Path):
        data = config.data
        self.config = config
        self.tokenizer = load_tokenizer(folder)
        self.length = data.buckets[-1]
        self.splits: dict[str, PackedText] = {}
        self.datasets: dict[str, str] = {}
        self.notes: list[str] = []
        for name in SPLITS:
            self.splits[name], self.datasets[name], count = load_packed(
                data.source,
                data[f"{name}_split"],
                data.text_field,
                self.tokenizer,
                self.length,
                limit=data.train_limit if name == "train" else None,
            )
            rows = len(self.splits[name].input_ids)
            self.notes.append(f"{name}: {count:,} tokens in {rows:,} rows of {self.length}")
        self.retention = None
        if config.retention.enabled:
            self.retention = TextRetention(config, self.tokenizer)
            self.datasets |= self.retention.datasets

    def training_tokens(self) -> np.ndarray:
        """Those of the training rows."""
        return self.splits["train"].input_ids.ravel()

    def facts(self) -> dict:
        """Nothing is needed besides config and weights."""
        return {}

    def network(self, backbone: nnx.Module, seed: int) -> nnx.Module:
        """The published network with its published head."""
        return LanguageModel(backbone, self.config.model.logits_at_once)

    def count(self, split: str) -> int:
        """Rows of a split."""
        return len(self.splits[split].input_ids)

    def plan(self, split: str, batch_size: int, epoch: int | None = None) -> list[BatchPlan]:
        """Which rows go together."""
        return _plan(self.splits[split], batch_size, self.config.seed, epoch)

    def make(self, split: str, batch_size: int, plan: BatchPlan) -> dict[str, np.ndarray]:
        """A planned batch."""
        return next_token_batch(self.splits[split], plan.indices, batch_size=batch_size)

    loss = staticmethod(tokens.loss)

    def outputs(self, network: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
        """Sum of losses and number of tokens of each row, [batch, 2]."""
        return tokens.row_sums(network(batch), batch)

    def metrics(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Mean loss per token in nats, and perplexity."""
        return _perplexity(outputs)


class TextRetention:
    """Retention of a language model: its perplexity on text that has nothing to do with the task.

    Attributes:
        datasets: split -> SHA-256.
    """

    def __init__(self, config: ConfigDict, tokenizer: transformers.PreTrainedTokenizerBase):
        settings = config.retention
        self._size = config.evaluation.batch_size
        self._packed, fingerprint, _ = load_packed(
            settings.source,
            settings.test_split,
            settings.text_field,
            tokenizer,
            config.data.buckets[-1],
            limit=settings.limit,
        )
        self.datasets = {"retention/test": fingerprint}

    def batches(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """All rows of the corpus."""
        plans = _plan(self._packed, self._size, 0, None)
        rows = [next_token_batch(self._packed, p.indices, batch_size=self._size) for p in plans]
        return {"test": rows}

    def outputs(self, network: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
        """Sum of losses and number of tokens of each row, [batch, 2]."""
        return tokens.row_sums(network(batch), batch)

    def score(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """What is kept of the network before tuning: the same sums."""
        return outputs["test"]

    def metrics(self, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
        """`retention/before` and `/after` are perplexities; `/change` is that of the mean loss."""
        first, last = _perplexity(before), _perplexity(after)
        return {
            "retention/before": first["perplexity"],
            "retention/after": last["perplexity"],
            "retention/change": first["loss"] - last["loss"],
        }


def load_packed(
    source: str,
    split: str,
    field: str,
    tokenizer: transformers.PreTrainedTokenizerBase,
    length: int,
    *,
    limit: int | None = None,
) -> tuple[PackedText, str, int]:
    """A split as packed rows, its SHA-256, and its number of tokens."""
    records = load_records(source, split=split, fields={"text": field}, limit=limit)
    tokenized = tokenize_documents(records, tokenizer)
    return pack(tokenized, length), records.fingerprint, len(tokenized.input_ids)


def _plan(packed: PackedText, batch_size: int, seed: int, epoch: int | None) -> list[BatchPlan]:
    rows, length = packed.input_ids.shape
    return plan_batches(
        np.full(rows, length),
        batch_size=batch_size,
        buckets=(length,),
        seed=seed,
        epoch=epoch or 0,
        shuffle=epoch is not None,
    )


def _perplexity(sums: np.ndarray) -> dict[str, float]:
    total, tokens = sums.astype(np.float64).sum(0)
    return {"loss": float(total / tokens), "perplexity": float(np.exp(total / tokens))}
