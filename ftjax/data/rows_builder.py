"""What our builders of data sets share."""

import abc
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds


class RowsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set that says what it is in class attributes, and its rows in `splits`.

    Attributes:
        VERSION: raised whenever other rows come out.
        HOMEPAGE: address.
        LICENSE: SPDX identifier, or words.
        CITATION: BibTeX.
    """

    HOMEPAGE = ""
    LICENSE = ""
    CITATION = ""

    @abc.abstractmethod
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each field of a row (of the chosen config)."""

    @abc.abstractmethod
    def splits(self) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        """The rows of each split (of the chosen config), in order."""

    @property
    def config_name(self) -> str:
        """The chosen config's, of a builder with several."""
        assert self.builder_config is not None
        return self.builder_config.name

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(dict(self.features())),
        )

    def _split_generators(self, download_manager) -> dict[str, Iterable]:
        return {name: enumerate(rows) for name, rows in self.splits().items()}

    def _generate_examples(self, rows):
        yield from rows


def place_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, for ever the same."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def split_by_hash(group: str) -> str:
    """train (80 %), validation or test (10 % each) of a group, for ever the same."""
    place = place_of(group)
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"
