"""Customers' turns in support conversations of six industries, with intent and slots."""

import csv
import io
import itertools
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder
from ftjax.locate import fetch

ADDRESS = (
    "https://raw.githubusercontent.com/awslabs/multi-domain-goal-oriented-dialogues-dataset/"
    "baa30639c4b271f394b81443c842193407cdf26d/data/paper_splits/splits_annotated_at_turn_level/"
)
FILES = {
    "airline/dev.tsv": "9127571445872970357b9b7100a207ee4fccccb113fbbc2eab2d0816a169c701",
    "airline/test.tsv": "eef0d39c592a7b785e87307e59d4386d0e42b5eb8fab0c8651c6d85befea0b3f",
    "airline/train.tsv": "a1fe5779dd81ed22da718e3981e4ec1ff3853d4313bf07b7404612422df743d5",
    "fastfood/dev.tsv": "90c0667a1f743070ac26dd9b77e267096936d499c6359ae2ce0a258d034cc06c",
    "fastfood/test.tsv": "252b69ca216f3c98a6feabdc43ca1024e8a1c13f1cbc3008e6d8d56c27acb76e",
    "fastfood/train.tsv": "1460d3096166fe756ea04033d4dd136389fdaf2de84e4ce8ee820990ae3c6bae",
    "finance/dev.tsv": "1091278fa9a33caa7847c18dd2d2de4a5ae6a875922f485659165e62aacf15f0",
    "finance/test.tsv": "2bc4e19bb11fee50c7d16d3810662addd9d5de463134518752052a8267b72e44",
    "finance/train.tsv": "88d17fe400fd859ea60686d771333f58af99811bbe108dfd40035f79d1f0cfa7",
    "insurance/dev.tsv": "235d9cf0571b64da28de5f4964a665744fd8d9486e8e45a7ce136f3f7e58efdd",
    "insurance/test.tsv": "fd6703811450d7d3a5ee9671d44f422108e0188d96e774a38918809cf271413b",
    "insurance/train.tsv": "290eb53eadb0d6d6dc986bc870b8600b1f66c64dbd76f677761ec06b24d350e7",
    "media/dev.tsv": "b414afeea1f2427cbf026ef50d52abc2746743bcb555658e7d87ae242fd81b9e",
    "media/test.tsv": "ae6d37c6a9ebcdc64359e9a79245cc077daf1add125e762209b8940b9ff8374d",
    "media/train.tsv": "93336acb2840fa09dc0ebaebc168a526d1c665330c9b4e80087aa7c200fdd104",
    "software/dev.tsv": "e30bd5510391c559bf281a660d8e2cda922e1780ddc93e3e5cfbe0bc4f390eaa",
    "software/test.tsv": "cb725f4a024ed7c19d6c7afc1b01d9dc298e8baeef5634ec3bb91e9d2b9863e3",
    "software/train.tsv": "b1e21e7b6f0f8a4a153c941c9d3bee48612eae2462e869bca34dba51a0f7b27d",
}
DOMAINS = ("airline", "fastfood", "finance", "insurance", "media", "software")
SPLITS = {"train": "train", "validation": "dev", "test": "test"}


class Multidogo(RowsBuilder):
    """MultiDoGO, annotated by turn: one config for each industry, split as published.

    `intents` are the intents of the turn, `intent` the same as one name (as published, several
    joined by "<div>"). `slots` has a tag for each word of `tokens`. Published are names of slots
    without beginnings; here words in a row with one name are one slot, tagged B- and I- (IOB2).
    Empty turns, and tokens that are white space, are left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=domain) for domain in DOMAINS]  # noqa: RUF012
    HOMEPAGE = "https://github.com/awslabs/multi-domain-goal-oriented-dialogues-dataset"
    LICENSE = "CDLA-Permissive-1.0"
    CITATION = """\
@inproceedings{peskov-etal-2019-multi,
  title = {Multi-Domain Goal-Oriented Dialogues ({M}ulti{D}o{GO}): Strategies toward Curating and
    Annotating Large Scale Dialogue Data},
  author = {Peskov, Denis and Clarke, Nancy and Krone, Jason and Fodor, Brigi and Zhang, Yi and
    Youssef, Adel and Diab, Mona},
  booktitle = {Proceedings of the 2019 Conference on Empirical Methods in Natural Language
    Processing},
  year = {2019},
  pages = {4526--4536},
  doi = {10.18653/v1/D19-1460},
}"""

    def features(self) -> Mapping:
        """`text` is `tokens`, joined by spaces."""
        text = tfds.features.Text()
        words = tfds.features.Sequence(text)
        names = {"text": text, "intent": text, "intents": words, "tokens": words, "slots": words}
        return {**names, "conversation": text}

    def splits(self) -> Mapping:
        """The published files of the config's industry."""
        domain = self.config_name
        names = {split: f"{domain}/{file}.tsv" for split, file in SPLITS.items()}
        return {
            split: read_turns(fetch(ADDRESS + name, FILES[name]).read_bytes())
            for split, name in names.items()
        }


def read_turns(content: bytes) -> list[dict[str, Any]]:
    """The turns of a published file."""
    lines = io.StringIO(content.decode("utf-8-sig"), newline="")
    turns = []
    for row in csv.DictReader(lines, delimiter="\t", strict=True):
        words = zip(row["utterance"].split(" "), row["slot-labels"].split(" "), strict=True)
        # A token can be a line break or a tab, which is no word.
        kept = [(word, slot) for word, slot in words if word.strip()]
        if not kept:
            continue
        turns.append(
            {
                "text": " ".join(word for word, _ in kept),
                "intent": row["intent"],
                "intents": row["intent"].split("<div>"),
                "tokens": [word for word, _ in kept],
                "slots": in_iob2([slot for _, slot in kept]),
                "conversation": row["conversationId"],
            }
        )
    return turns


def in_iob2(slots: list[str]) -> list[str]:
    """Tags of words in IOB2, from the name of each word's slot (O for none)."""
    tags = []
    for slot, words in itertools.groupby(slots):
        count = len(list(words))
        tags += ["O"] * count if slot == "O" else [f"B-{slot}"] + [f"I-{slot}"] * (count - 1)
    return tags
