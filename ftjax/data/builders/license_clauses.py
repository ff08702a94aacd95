"""Clauses of software licences, sorted by what they oblige a reader to.

The texts are the detection rules of ScanCode (https://github.com/aboutcode-org/scancode-toolkit,
CC-BY-4.0): real snippets from real files, each with a licence expression. Every licence key has a
category ("Permissive", "Copyleft", ...), which is what a reader wants to know.
"""

import collections
import functools
import hashlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import license_expression
import tensorflow_datasets as tfds
import yaml

from ftjax.data.near_duplicates import without_repetitions
from ftjax.locate import fetch_wheel

PACKAGE = ("scancode-toolkit-mini", "32.5.0")
SHARES = {"train": 0.74, "validation": 0.13, "test": 0.13}
FEWEST_LICENSES = 15
FEWEST_WORDS, MOST_WORDS = 8, 64
MOST_PER_LICENSE = 40


class LicenseClauses(tfds.core.GeneratorBasedBuilder):
    """Snippets of one category, of 8 to 64 words, at most 40 of one licence.

    Longer texts are whole licences rather than clauses.
    Categories with fewer than 15 licences (patent grants, contributor agreements, unstated terms)
    are left out: too few to stand in three splits. Splits are by licence key: no licence stands in
    two splits, and a snippet whose licences belong to different splits is left out. Of validation
    and test, what nearly repeats a snippet of an earlier split (word 5-gram Jaccard similarity of
    0.8 or more) is left out too.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "ScanCode 32.5.0."}  # noqa: RUF012 (TFDS wants it so)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=self.__doc__,
            homepage="https://github.com/aboutcode-org/scancode-toolkit",
            license="CC-BY-4.0",
            features=tfds.features.FeaturesDict(
                {
                    "text": text,
                    "label": text,
                    "license_expression": text,
                    "license_keys": tfds.features.Sequence(text),
                    "kind": text,
                    "rule": text,
                }
            ),
        )

    def _split_generators(self, download_manager) -> dict[str, Iterator]:
        with zipfile.ZipFile(fetch_wheel(*PACKAGE)) as wheel:
            splits = split_by_license(select(read_rules(wheel)))
        return {
            name: ((clause["rule"], clause) for clause in rows) for name, rows in splits.items()
        }

    def _generate_examples(self, clauses):
        yield from clauses


def read_rules(wheel: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
    """All rules with a known licence expression.

    Yields:
        `text`, `label` (the category, "" if the licences have several), `categories`,
        `license_expression`, `license_keys`, `kind`, `rule` (its file name).
    """
    categories = {}
    for name in _members(wheel, "licensedcode/data/licenses/", ".LICENSE"):
        front, _ = parse_front_matter(wheel.read(name).decode())
        categories[front["key"]] = front["category"]
    for name in _members(wheel, "licensedcode/data/rules/", ".RULE"):
        front, text = parse_front_matter(wheel.read(name).decode())
        if front.get("is_false_positive") or front.get("is_deprecated"):
            continue
        keys = license_keys(front["license_expression"])
        if not keys or any(key not in categories for key in keys):
            continue
        found = sorted({categories[key] for key in keys})
        yield {
            # ScanCode marks phrases that must be present with double braces.
            "text": " ".join(re.sub(r"\{\{|\}\}", "", text).split()),
            "label": found[0] if len(found) == 1 else "",
            "categories": found,
            "license_expression": front["license_expression"],
            "license_keys": keys,
            "kind": _kind(front),
            "rule": name.rpartition("/")[2],
        }


def select(rules: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """One category, enough words, no exact repetition, not too many of one licence."""
    counts: collections.Counter = collections.Counter()
    seen, chosen = set(), []
    for rule in sorted(rules, key=lambda rule: _hash(rule["rule"])):
        normal = " ".join(re.findall(r"\w+", rule["text"].lower()))
        fits = FEWEST_WORDS <= len(rule["text"].split()) <= MOST_WORDS
        if not rule["label"] or not fits or normal in seen:
            continue
        if any(counts[key] >= MOST_PER_LICENSE for key in rule["license_keys"]):
            continue
        counts.update(rule["license_keys"])
        seen.add(normal)
        chosen.append({name: rule[name] for name in rule if name != "categories"})
    return chosen


def split_by_license(clauses: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """train, validation and test without a licence, or nearly the same text, in two of them."""
    split_of = assign_licenses(clauses)
    splits: dict[str, list] = {name: [] for name in SHARES}
    for clause in clauses:
        places = {split_of.get(key) for key in clause["license_keys"]}
        place = places.pop() if len(places) == 1 else None
        if place is not None:
            splits[place].append(clause)
    return without_repetitions(splits)


def assign_licenses(clauses: list[dict[str, Any]]) -> dict[str, str]:
    """Licence key -> split, so that each category is divided as `SHARES` says.

    Licences with many snippets are placed first, each into the split of its category that is
    furthest from its share; ties by hash. Licences of rare categories are in no split.
    """
    licenses = collections.defaultdict(collections.Counter)
    for clause in clauses:
        licenses[clause["label"]].update(clause["license_keys"])
    split_of = {}
    for counts in licenses.values():
        if len(counts) < FEWEST_LICENSES:
            continue
        filled = dict.fromkeys(SHARES, 0)
        for key in sorted(counts, key=lambda key: (-counts[key], _hash(key))):
            place = min(SHARES, key=lambda name: (filled[name] + counts[key] / 2) / SHARES[name])
            filled[place] += counts[key]
            split_of[key] = place
    return split_of


def license_keys(expression: str) -> list[str]:
    """The licence keys in an expression such as "gpl-2.0 WITH classpath-exception-2.0 OR mit"."""
    parsed = _licensing().parse(expression)
    return sorted(set(_licensing().license_keys(parsed)))


def parse_front_matter(content: str) -> tuple[dict[str, Any], str]:
    """YAML between two lines of dashes, and the text behind it.

    Raises:
        ValueError: there is no front matter.
    """
    content = content.replace("\r\n", "\n")
    match = re.match(r"---\n(.*?)\n---\n?(.*)", content, flags=re.DOTALL)
    if not match:
        raise ValueError(f"No YAML front matter in {content[:60]!r}...")
    return yaml.load(match[1], Loader=yaml.CSafeLoader), match[2].strip()


@functools.cache
def _licensing() -> license_expression.Licensing:
    return license_expression.Licensing()


def _members(wheel: zipfile.ZipFile, folder: str, ending: str) -> list[str]:
    names = wheel.namelist()
    return sorted(name for name in names if name.startswith(folder) and name.endswith(ending))


def _kind(front: dict[str, Any]) -> str:
    kinds = ("text", "notice", "reference", "tag", "intro", "clue")
    return next((kind for kind in kinds if front.get(f"is_license_{kind}")), "other")


def _hash(text: str) -> float:
    """A number in [0, 1) that only depends on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
