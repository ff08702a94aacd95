"""Sentiment of sentences in four domains, each judged by about twenty people."""

import html
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ftjax.data.archives import read_tar_members
from ftjax.data.rows_builder import RowsBuilder, split_by_hash
from ftjax.locate import fetch

ADDRESS = (
    "https://raw.githubusercontent.com/cjhutto/vaderSentiment/"
    "44fc044cd877310ee8278a0eadf34bcd50d41d06/additional_resources/hutto_ICWSM_2014.tar.gz"
)
SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
FILES = {
    "tweets": "tweets",
    "films": "movieReviewSnippets",
    "newspaper": "nytEditorialSnippets",
    "products": "amazonReviewSnippets",
}
# What a config's name ends with that has no neutral sentences.
POLAR = "_polar"
# Below minus this, or above this, a mean rating counts as negative or positive.
NEUTRAL_UP_TO = 0.5


class Vader(RowsBuilder):
    """VADER's ground truth: one config for each of tweets, films, newspaper and products.

    `rating` is the published mean, -4 (very negative) to 4; `ratings` is every rater's number, and
    `label` is negative below -0.5, positive above 0.5, else neutral. In 199 tweets the published
    mean is not that of the published ratings. HTML's `&amp;` is undone. Configs that end with
    `_polar` are without the neutral sentences. No splits are published:
    sentences of one article or review (newspaper, products), and equal sentences (tweets, films),
    are of one split.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name + polar) for polar in ("", POLAR) for name in FILES
    ]
    HOMEPAGE = "https://github.com/cjhutto/vaderSentiment"
    LICENSE = "MIT"
    CITATION = """\
@inproceedings{hutto2014vader,
  title = {VADER: A Parsimonious Rule-Based Model for Sentiment Analysis of Social Media Text},
  author = {Hutto, C.J. and Gilbert, Eric},
  booktitle = {Proceedings of the International AAAI Conference on Web and Social Media},
  volume = {8},
  pages = {216--225},
  year = {2014},
}"""

    def features(self) -> Mapping:
        """`group` is the article or review, or the sentence's own number."""
        text = tfds.features.Text()
        rating = tfds.features.Scalar(np.float64)
        ratings = tfds.features.Sequence(tfds.features.Scalar(np.int32))
        return {"text": text, "label": text, "rating": rating, "ratings": ratings, "group": text}

    def splits(self) -> Mapping:
        """The sentences of the config's domain, divided by hash."""
        domain = self.config_name.removesuffix(POLAR)
        name = f"hutto_ICWSM_2014/{FILES[domain]}"
        means, ratings = f"{name}_GroundTruth.txt", f"{name}_anonDataRatings.txt"
        files = read_tar_members(fetch(ADDRESS, SHA256), (means, ratings))
        splits: dict[str, list] = {"train": [], "validation": [], "test": []}
        for row in read_sentences(files[means], files[ratings]):
            if row["label"] == "neutral" and domain != self.config_name:
                continue
            grouped = domain in ("newspaper", "products")
            splits[split_by_hash(row["group"] if grouped else row["text"].lower())].append(row)
        return splits


def read_sentences(means: bytes, ratings: bytes) -> list[dict[str, Any]]:
    """The sentences of a domain, from its two files, whose order differs."""
    every = {number: json.loads(line) for number, _, _, line in _cells(ratings)}
    rows = []
    for number, mean, text in _cells(means):
        rating = float(mean)
        row = {"text": html.unescape(html.unescape(text)).strip(), "label": label_of(rating)}
        group = number.partition("_")[0]
        rows.append({**row, "rating": rating, "ratings": every[number], "group": group})
    return rows


def label_of(rating: float) -> str:
    """negative, neutral or positive."""
    if abs(rating) <= NEUTRAL_UP_TO:
        return "neutral"
    return "positive" if rating > 0 else "negative"


def _cells(content: bytes) -> list[list[str]]:
    lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    return [line.split("\t") for line in lines if line.strip()]
