"""Retention of a text encoder: a probe on text that has nothing to do with the task."""

from collections.abc import Callable

import numpy as np
import transformers
from ml_collections import ConfigDict

from ftjax.data.batching import make_batch, plan_batches
from ftjax.data.sources import load_records
from ftjax.data.text import encode_labels, tokenize
from ftjax.evaluation.retention import probe_correct

SPLITS = ("train", "test")


class RetentionCorpus:
    """Labelled text and the probe on it.

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

    def correct(self, features: Callable[[list[dict[str, np.ndarray]]], np.ndarray]) -> np.ndarray:
        """Whether a probe on a network's features sorts each test text right.

        Args:
            features: batches -> [texts, hidden], in the order of `example_ids`.

        Returns:
            bool [test texts].
        """
        found = {name: features(self._batches(name)) for name in SPLITS}
        return probe_correct(
            found["train"], self._labels["train"], found["test"], self._labels["test"]
        )

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
