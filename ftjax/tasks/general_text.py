"""Text that has nothing to do with the task, for what holds a network near its start."""

import numpy as np
from ml_collections import ConfigDict

from ftjax.data.packing import next_token_batch
from ftjax.data.sources import load_records
from ftjax.data.text import tokenize
from ftjax.tasks import Task
from ftjax.tasks.causal_lm import load_packed


class GeneralText:
    """Rows of general text, in the form that the task's network reads.

    Attributes:
        datasets: split -> SHA-256 of its content.
        count: how many rows there are.
    """

    def __init__(self, config: ConfigDict, task: Task):
        """Loads and tokenises the text.

        Args:
            config: of a run with `penalties.source`.
            task: of the same run.

        Raises:
            ValueError, FileNotFoundError: as `load_records`.
        """
        settings = config.penalties
        self._pad = task.tokenizer.pad_token_id
        where = {"split": settings.split, "limit": settings.limit}
        if config.task == "causal_lm":
            self._packed, fingerprint, _ = load_packed(
                settings.source,
                settings.split,
                settings.text_field,
                task.tokenizer,
                config.data.buckets[-1],
                limit=settings.limit,
            )
            self.count = len(self._packed.input_ids)
        else:
            fields = {"text": settings.text_field}
            records = load_records(settings.source, fields=fields, **where)
            fingerprint = records.fingerprint
            self._packed = None
            self._tokens = tokenize(records, task.tokenizer, max_length=config.data.buckets[-1])
            self.count = len(self._tokens.lengths)
        self.datasets = {"general": fingerprint}

    def tokens(self) -> np.ndarray:
        """Ids of its tokens, int, with repetitions."""
        ragged = self._tokens if self._packed is None else self._packed
        return ragged.input_ids.ravel()

    def rows(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Chosen rows as a batch with weights of 1; longer texts are cut.

        Args:
            indices: int [rows].
            length: tokens per row.
        """
        if self._packed is not None:
            return next_token_batch(self._packed, indices, batch_size=len(indices))
        input_ids = np.full((len(indices), length), self._pad, np.int32)
        attention_mask = np.zeros_like(input_ids)
        for row, index in enumerate(indices):
            start, end = self._tokens.offsets[index : index + 2]
            ids = self._tokens.input_ids[start:end][:length]
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : max(len(ids), 1)] = 1
        weights = np.ones(len(indices), np.float32)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "weights": weights}


class Replay:
    """Adds rows of general text to the batches of training.

    Their weights sum to those of the batch's own rows, so that a strength of 1 gives both the same
    say.
    """

    def __init__(self, text: GeneralText, share: float, seed: int, multiple: int):
        """Remembers how.

        Args:
            text: where rows come from.
            share: rows of general text per row of the batch.
            seed: the run's.
            multiple: the number of rows is rounded up to a multiple of it.
        """
        self._text, self._share, self._seed, self._multiple = text, share, seed, multiple

    def add(self, batch: dict[str, np.ndarray], epoch: int, index: int) -> dict[str, np.ndarray]:
        """The batch with further arrays, named `replay_` and what they are.

        Args:
            batch: of the task.
            epoch: together with
            index: of the batch within the epoch, decides which rows.
        """
        rows, length = batch["input_ids"].shape
        count = -(-round(self._share * rows) // self._multiple) * self._multiple or self._multiple
        random = np.random.default_rng([self._seed, epoch, index])
        extra = self._text.rows(random.integers(self._text.count, size=count), length)
        weights = extra["weights"].astype(np.float32)
        extra["weights"] = weights * np.float32(batch["weights"].sum() / max(weights.sum(), 1.0))
        extra.pop("example_ids", None)
        return batch | {f"replay_{name}": value for name, value in extra.items()}
