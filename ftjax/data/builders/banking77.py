"""Customers' questions to a bank in 77 intents."""

import collections
import csv
import io
from collections.abc import Mapping

import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder, place_of
from ftjax.locate import fetch

ADDRESS = (
    "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/"
    "57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data/"
)
FILES = {
    "train.csv": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test.csv": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}
VALIDATION_SHARE = 0.1


class Banking77(RowsBuilder):
    """Banking77: 10,003 questions to learn from and 3,080 to test on, with `label`.

    The test split is the published one. The published training split has no validation part: a
    tenth of each intent's questions is taken for it, by the hash of the question. `pairs`: two
    questions of one intent each, as `anchor` and `positive` with `label`, no question twice.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions"),
        tfds.core.BuilderConfig(name="pairs"),
    ]
    HOMEPAGE = "https://github.com/PolyAI-LDN/task-specific-datasets"
    LICENSE = "CC-BY-4.0"
    CITATION = """\
@inproceedings{Casanueva2020,
  author = {I{\\~{n}}igo Casanueva and Tadas Temcinas and Daniela Gerz and Matthew Henderson and
    Ivan Vulic},
  title = {Efficient Intent Detection with Dual Sentence Encoders},
  booktitle = {Proceedings of the 2nd Workshop on NLP for ConvAI - ACL 2020},
  year = {2020},
  url = {https://arxiv.org/abs/2003.04807},
}"""

    def features(self) -> Mapping:
        """Texts without the white space around them."""
        texts = ("anchor", "positive") if self.config_name == "pairs" else ("text",)
        return dict.fromkeys((*texts, "label"), tfds.features.Text())

    def splits(self) -> Mapping:
        """The published files, the first one divided."""
        rows = {
            name: read_rows(fetch(ADDRESS + name, sha256).read_bytes())
            for name, sha256 in FILES.items()
        }
        train, validation = take_validation(rows["train.csv"])
        splits = {"train": train, "validation": validation, "test": rows["test.csv"]}
        if self.config_name == "pairs":
            return {split: pairs_of(found) for split, found in splits.items()}
        return splits


def pairs_of(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Different questions of an intent, two by two in the order of their hashes."""
    questions = collections.defaultdict(set)
    for row in rows:
        questions[row["label"]].add(row["text"])
    ordered = {
        label: sorted(asked, key=lambda question: (place_of(question), question))
        for label, asked in questions.items()
    }
    return [
        {"anchor": anchor, "positive": positive, "label": label}
        for label, asked in ordered.items()
        for anchor, positive in zip(asked[::2], asked[1::2], strict=False)
    ]


def read_rows(content: bytes) -> list[dict[str, str]]:
    """The rows of a published file."""
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    return [{"text": row["text"].strip(), "label": row["category"]} for row in rows]


def take_validation(rows: list[dict[str, str]]) -> tuple[list, list]:
    """Training and validation rows; a question that stands twice stays on one side."""
    questions = collections.defaultdict(set)
    for row in rows:
        questions[row["label"]].add(row["text"].lower())
    taken = set()
    for asked in questions.values():
        ordered = sorted(asked, key=lambda question: (place_of(question), question))
        taken.update(ordered[: round(len(ordered) * VALIDATION_SHARE)])
    sides: tuple[list, list] = ([], [])
    for row in rows:
        sides[row["text"].lower() in taken].append(row)
    return sides
