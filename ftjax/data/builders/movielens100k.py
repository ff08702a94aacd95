"""What people thought of films (GroupLens, 1997 to 1998)."""

import zipfile
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder
from ftjax.locate import fetch_wheel

PACKAGE = ("recbole", "1.2.1")
FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
# Our names -> those of the published columns.
COLUMNS = {
    "ratings": {
        "user_id": "user_id:token",
        "item_id": "item_id:token",
        "rating": "rating:float",
        "timestamp": "timestamp:float",
    },
    "items": {
        "item_id": "item_id:token",
        "title": "movie_title:token_seq",
        "year": "release_year:token",
        "genres": "class:token_seq",
    },
}
FILES = {"ratings": "inter", "items": "item"}


class Movielens100k(RowsBuilder):
    """MovieLens 100K: `ratings` of films from 1 to 5 with their second, and the films (`items`).

    All in one split, `train`: how ratings are divided is for who evaluates to say. The files are
    those that RecBole ships (100,000 ratings of 943 people, 1,682 films with title, year and
    genres).
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="ratings"),
        tfds.core.BuilderConfig(name="items"),
    ]
    HOMEPAGE = "https://grouplens.org/datasets/movielens/100k/"
    LICENSE = "GroupLens: research, no redistribution, cite the source"
    CITATION = """\
@article{Harper2015,
  author = {F. Maxwell Harper and Joseph A. Konstan},
  title = {The MovieLens Datasets: History and Context},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume = {5},
  number = {4},
  year = {2015},
  doi = {10.1145/2827872},
}"""

    def features(self) -> Mapping:
        """Ratings and seconds as numbers, all else as text."""
        scalar = tfds.features.Scalar
        numbers = {"rating": scalar(np.float32), "timestamp": scalar(np.int64)}
        names = COLUMNS[self.config_name]
        return {name: numbers.get(name, tfds.features.Text()) for name in names}

    def splits(self) -> Mapping:
        """One split."""
        with zipfile.ZipFile(fetch_wheel(*PACKAGE)) as wheel:
            content = wheel.read(f"{FOLDER}.{FILES[self.config_name]}")
        return {"train": rows_of(content, self.config_name)}


def rows_of(content: bytes, config: str) -> list[dict]:
    """The rows of a published file, with our names."""
    lines = content.decode("utf-8").splitlines()
    header = lines[0].split("\t")
    cells = (dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:])
    rows = [{ours: row[theirs] for ours, theirs in COLUMNS[config].items()} for row in cells]
    kinds = {"rating": float, "timestamp": int}
    return [{name: kinds.get(name, str)(value) for name, value in row.items()} for row in rows]
