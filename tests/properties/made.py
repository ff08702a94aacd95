"""Examples that are made for the matrix: texts of words, likes of items, completions of prompts."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tiny import WORDS

from ftjax.models.rollout import Completions

SIZES = (1, 2, 3, 3, 4, 5, 6, 7)
"""Words of the eight examples. A word has up to three tokens, and a row 24."""
END = 3
VOCABULARY = 64
"""Rows of every tiny network's table (`tiny.write_checkpoint`)."""


def some_text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choices(WORDS, k=words))


PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def painted(generator: random.Random, words: int) -> dict:
    """An image of numbers, and which of three colours it has."""
    pixels = [[generator.randrange(256) for _ in range(16)] for _ in range(16)]
    return {"image": pixels, "label": "abc"[words % 3]}


ITEMS = 12


def write_likes(folder: Path, times: int) -> None:
    """So many times eight people, each with a few items; the last two are held out."""
    generator = random.Random(0)
    likes = [
        {"user_id": user, "item_id": item, "timestamp": place}
        for user, words in enumerate(SIZES * times)
        for place, item in enumerate(generator.sample(range(ITEMS), 4 + words % 3))
    ]
    items = [{"item_id": n, "title": some_text(generator, 1 + n % 2)} for n in range(ITEMS)]
    for name, rows in (("likes", likes), ("items", items)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


NEW = 8
REWARDS = Path(__file__).with_name("rewards.py")


def with_completions(objective, batch) -> Mapping[str, np.ndarray]:
    """Prompts with completions that no network wrote: some end, and some do not.

    Of the examples every other one, so that there are no more rows than elsewhere.
    """
    rollout = objective.rollout()
    copies = rollout.copies
    batch = {name: np.repeat(array[::copies], copies, axis=0) for name, array in batch.items()}
    rows = len(batch["example_ids"])
    generator = np.random.default_rng(int(batch["example_ids"].sum()) + 99)
    tokens = generator.integers(4, VOCABULARY, (rows, NEW)).astype(np.int32)
    lengths = generator.integers(1, NEW + 1, rows)
    tokens[np.arange(rows), lengths - 1] = END
    tokens[::5] = generator.integers(4, VOCABULARY, (len(tokens[::5]), NEW))
    kept = np.arange(NEW) < lengths[:, None]
    kept[::5] = True
    tokens = np.where(kept, tokens, -1)
    logps = -generator.exponential(size=tokens.shape).astype(np.float32)
    return rollout.batch(batch, Completions(tokens, logps))
