"""Doctors' conversations with patients, and the section of the note written from each."""

import csv
import io
from collections.abc import Mapping

import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder
from ftjax.locate import fetch

ADDRESS = (
    "https://raw.githubusercontent.com/abachaa/MTS-Dialog/"
    "3ff0801933608d6f570468c13125125fb5cabdea/Main-Dataset/MTS-Dialog-"
)
FILES = {
    "train": (
        "TrainingSet.csv",
        "65a28681dd59fc159681ea026e44610f2af7bc64a0e7f892d763eb03d9f503dc",
    ),
    "validation": (
        "ValidationSet.csv",
        "227206520c4534381c0d7fba6d3f09319a9af5a6d9603a93c0341af1198e3958",
    ),
    "test1": (
        "TestSet-1-MEDIQA-Chat-2023.csv",
        "b4d38dd2c99b2e9860099abcf653f1e0f3e9b69f9fcc45be2a2699b37a4d2f37",
    ),
    "test2": (
        "TestSet-2-MEDIQA-Sum-2023.csv",
        "226644466ed3af82382b327a3e684aab70aa605b96cfd93b04f584f1826ab1a6",
    ),
}


class MtsDialog(RowsBuilder):
    """MTS-Dialog: 1,701 short conversations with `section_header` (20 kinds) and `section_text`.

    Split as published: test1 is that of MEDIQA-Chat 2023, test2 that of MEDIQA-Sum 2023.
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = "https://github.com/abachaa/MTS-Dialog"
    LICENSE = "CC-BY-4.0"
    CITATION = """\
@inproceedings{mts-dialog,
  title = {An Empirical Study of Clinical Note Generation from Doctor-Patient Encounters},
  author = {Ben Abacha, Asma and Yim, Wen-wai and Fan, Yadan and Lin, Thomas},
  booktitle = {Proceedings of the 17th Conference of the European Chapter of the Association for
    Computational Linguistics},
  year = {2023},
  url = {https://aclanthology.org/2023.eacl-main.168},
}"""

    def features(self) -> Mapping:
        """`dialogue` has one turn a line, each begun by who speaks."""
        text = tfds.features.Text()
        return {"dialogue": text, "section_header": text, "section_text": text, "id": text}

    def splits(self) -> Mapping:
        """The published files."""
        return {
            split: read_rows(fetch(ADDRESS + name, sha256).read_bytes())
            for split, (name, sha256) in FILES.items()
        }


def read_rows(content: bytes) -> list[dict[str, str]]:
    """The rows of a published file."""
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    return [
        {
            "dialogue": row["dialogue"].replace("\r\n", "\n").strip(),
            "section_header": row["section_header"].strip(),
            "section_text": row["section_text"].strip(),
            "id": row["ID"],
        }
        for row in rows
    ]
