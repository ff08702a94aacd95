"""Retention of a text encoder: a probe on text that has nothing to do with the task."""

import jax
import numpy as np
import transformers
from flax import nnx
from ml_collections import ConfigDict

from ftjax.data.batching import make_batch, plan_batches
from ftjax.data.labels import encode_labels
from ftjax.data.sources import load_records
from ftjax.data.text import tokenize
from ftjax.evaluation.retention import probe_correct, retention_metrics

SPLITS = ("train", "test")


class EncoderRetention:
    """Labelled text and the probe on it; see `ftjax.tasks.Retention`.

    Attributes:
        datasets: split -> SHA-256.
    """

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: transformers.PreTrainedTokenizerBase,
        batch_size: int,
    ):
        """Loads and tokenises the corpus.

        Args:
            config: the `retention` part of the config.
            tokenizer: the network's.
            batch_size: texts per batch.
        """
        fields = {"text": config.text_field, "label": config.label_field}
        self._batch_size = batch_size
        self._length = config.max_length
        self._pad = tokenizer.pad_token_id
        self._tokens, self._labels, self.datasets = {}, {}, {}
        classes = None
        for name in SPLITS:
            split = config[f"{name}_split"]
            records = load_records(config.source, split=split, fields=fields, limit=config.limit)
            self._tokens[name] = tokenize(records, tokenizer, max_length=config.max_length)
            self._labels[name], classes = encode_labels(records, "label", classes)
            self.datasets[f"retention/{name}"] = records.fingerprint

    def batches(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """All texts of both splits."""
        return {name: self._batches(name) for name in SPLITS}

    def outputs(self, network: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
        """Features [batch, hidden]."""
        return network.features(batch)

    def score(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """Whether a probe on the features sorts each test text right, bool [test texts]."""
        train, test = (outputs[name] for name in SPLITS)
        return probe_correct(train, self._labels["train"], test, self._labels["test"])

    def metrics(self, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
        """Accuracies before and after, and the change with its interval."""
        return retention_metrics(before, after)

    def _batches(self, name: str) -> list[dict[str, np.ndarray]]:
        tokens, labels = self._tokens[name], self._labels[name]
        plans = plan_batches(
            tokens.lengths,
            batch_size=self._batch_size,
            buckets=(self._length,),
            seed=0,
            epoch=0,
            shuffle=False,
        )
        return [
            make_batch(tokens, labels, plan, batch_size=self._batch_size, pad_token_id=self._pad)
            for plan in plans
        ]
