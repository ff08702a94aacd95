"""Chemicals and diseases in abstracts of articles."""

from collections.abc import Mapping

import tensorflow_datasets as tfds

from ftjax.data.rows_builder import RowsBuilder
from ftjax.data.sources.conll import read_sentences
from ftjax.locate import fetch

ADDRESS = (
    "https://raw.githubusercontent.com/cambridgeltl/MTL-Bioinformatics-2016/"
    "df0df02fae6dbb87d88ffcf323b9096528f06f84/data/BC5CDR-IOB/"
)
FILES = {
    "train": ("train.tsv", "b731361c0ed73afd04cc5fdad39afcdfd8f325d6e46c282339185a91d1af4c14"),
    "validation": ("devel.tsv", "b909de65c4f7e3c23bb09ad52d654cdc92e96db941abe1a5dcf6f6010c03cff5"),
    "test": ("test.tsv", "e41a2843a5fff0cd8d1a88cb147968d61ae29336ca70cddc3d7fb8ff21dfa1e8"),
}


class Bc5cdr(RowsBuilder):
    """BC5CDR: 13,938 sentences of PubMed abstracts; `ner_tags` name Chemical and Disease.

    Sentences, words and splits are those of Crichton et al. (2017).
    """

    VERSION = tfds.core.Version("1.1.0")
    HOMEPAGE = "https://github.com/cambridgeltl/MTL-Bioinformatics-2016"
    LICENSE = "CC-BY-4.0 (as redistributed at the homepage)"
    CITATION = """\
@article{li2016biocreative,
  title = {BioCreative V CDR task corpus: a resource for chemical disease relation extraction},
  author = {Li, Jiao and Sun, Yueping and Johnson, Robin J. and Sciaky, Daniela and Wei, Chih-Hsuan
    and Leaman, Robert and Davis, Allan Peter and Mattingly, Carolyn J. and Wiegers, Thomas C. and
    Lu, Zhiyong},
  journal = {Database},
  year = {2016},
  doi = {10.1093/database/baw068},
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
