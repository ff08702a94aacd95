"""Diseases in abstracts of articles."""

from collections.abc import Mapping

import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder
from ftjax.data.sources.conll import read_sentences
from ftjax.locate import fetch

ADDRESS = (
    "https://raw.githubusercontent.com/cambridgeltl/MTL-Bioinformatics-2016/"
    "df0df02fae6dbb87d88ffcf323b9096528f06f84/data/NCBI-disease-IOB/"
)
FILES = {
    "train": ("train.tsv", "58379baf4614b8d757d93dd7a21b202849ca99f9b9d71b49185523ff5443300c"),
    "validation": ("devel.tsv", "b4e1e7efcc2a35047bf2f3d281648357470e674f555d4a26a0049ac37d59cc61"),
    "test": ("test.tsv", "8f088ce45dc4746592188f9e69de3d89d87f3bb8f0ed8c4a287d018123fa148d"),
}


class NcbiDisease(RowsBuilder):
    """NCBI disease corpus: 7,287 sentences of PubMed abstracts; `ner_tags` name Disease.

    Sentences, words and splits are those of Crichton et al. (2017).
    """

    VERSION = tfds.core.Version("1.1.0")
    HOMEPAGE = "https://github.com/cambridgeltl/MTL-Bioinformatics-2016"
    LICENSE = "public domain (CC-BY-4.0 as redistributed at the homepage)"
    CITATION = """\
@article{dogan2014ncbi,
  title = {NCBI disease corpus: A resource for disease name recognition and concept normalization},
  author = {Do{\\u{g}}an, Rezarta Islamaj and Leaman, Robert and Lu, Zhiyong},
  journal = {Journal of Biomedical Informatics},
  volume = {47},
  pages = {1--10},
  year = {2014},
  doi = {10.1016/j.jbi.2013.12.006},
}
@article{crichton2017neural,
  title = {A neural network multi-task learning approach to biomedical named entity recognition},
  author = {Crichton, Gamal and Pyysalo, Sampo and Chiu, Billy and Korhonen, Anna},
  journal = {BMC Bioinformatics},
  volume = {18},
  year = {2017},
  doi = {10.1186/s12859-017-1776-8},
}"""

    def features(self) -> Mapping:
        """A tag for each word, in IOB2; and the words as a text."""
        text = tfds.features.Text()
        words = tfds.features.Sequence(text)
        return {"text": text, "tokens": words, "ner_tags": words}

    def splits(self) -> Mapping:
        """The published files."""
        return {
            split: read_sentences(fetch(ADDRESS + name, sha256))
            for split, (name, sha256) in FILES.items()
        }
