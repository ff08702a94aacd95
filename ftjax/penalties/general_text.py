"""Text that has nothing to do with the task, riding along in its batches."""

import numpy as np

from ftjax.data.examples import Examples


class Replay:
    """Adds rows of general text to the batches of training.

    Their weights sum to those of the batch's own rows, so that a strength of 1 gives both the same
    say.
    """

    def __init__(self, text: Examples, share: float, seed: int, multiple: int):
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
        indices = random.integers(len(self._text.lengths), size=count)
        extra = self._text.batch(indices, rows=count, length=length)
        weights = extra["weights"]
        extra["weights"] = weights * np.float32(batch["weights"].sum() / max(weights.sum(), 1.0))
        extra.pop("example_ids")
        return batch | {f"replay_{name}": value for name, value in extra.items()}
