"""Features of a network that stays as it is: computed once, so that no epoch runs it again."""

import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

FILE = "features.safetensors"


class CachedFeatures:
    """What the head sees of every example, by split."""

    def __init__(self, features: dict[str, np.ndarray]):
        """Remembers them.

        Args:
            features: split -> [examples, hidden], in the order of the examples.
        """
        self.features = features

    def batch(self, split: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch with features in the place of tokens.

        Args:
            split: the batch's.
            batch: `example_ids` and what the loss needs.

        Returns:
            `features` float32 [rows, hidden], and the arrays of `batch` that have one axis.
        """
        kept = {name: array for name, array in batch.items() if array.ndim == 1}
        # Rows that only fill up have id -1; their weight is 0, whatever their features.
        return kept | {"features": self.features[split][batch["example_ids"]]}

    def save(self, folder: Path) -> None:
        """Writes them to a run folder, atomically."""
        partial = folder / f"{FILE}.partial"
        save_file(self.features, partial)
        os.replace(partial, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "CachedFeatures | None":
        """What `save` wrote, or None."""
        file = folder / FILE
        return cls(load_file(file)) if file.exists() else None
