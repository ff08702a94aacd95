"""Entities in sentences of tagged words (IOB2: B-name begins one, I-name goes on, O is none)."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ftjax.evaluation.intervals import Interval, intervals_of_sums, ratio

Entity = tuple[int, str, int, int]

TAG = re.compile(r"O|[BI]-.+", re.DOTALL)


def is_iob2(tags: Sequence[str]) -> bool:
    """Whether all names have the form of IOB2's."""
    return all(map(TAG.fullmatch, tags))


def entities(sentences: Sequence[Sequence[str]]) -> set[Entity]:
    """The entities of sentences, strictly: what goes on with what did not begin is none.

    (seqeval's `mode="strict", scheme=IOB2`.)

    Returns:
        (sentence, type, first word, word behind the last).
    """
    found = set()
    for number, tags in enumerate(sentences):
        begun: tuple[str, int] | None = None
        for index, tag in enumerate([*tags, "O"]):
            kind, _, name = tag.partition("-")
            if begun is not None and not (kind == "I" and name == begun[0]):
                found.add((number, *begun, index))
                begun = None
            if kind == "B":
                begun = (name, index)
    return found


TAG_METRICS = {
    "f1": "higher",
    "precision": "higher",
    "recall": "higher",
    "accuracy": "higher",
    "loss": "lower",
}
"""What is scored -> which way is better."""


def entity_report(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of each type, and of all ("": micro-averaged).

    An entity is right if type and both ends are. What is undefined is 0.

    Args:
        truth: tags of each sentence.
        predicted: as many of each.

    Returns:
        Type -> `precision`, `recall`, `f1`, `support`.
    """
    right = entities(truth), entities(predicted)
    counts = [Counter(name for _, name, _, _ in side) for side in (*right, right[0] & right[1])]
    report = {"": _scores(*(sum(count.values()) for count in counts))}
    for name in sorted(counts[0].keys() | counts[1].keys()):
        report[name] = _scores(*(count[name] for count in counts))
    return report


def entity_intervals(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, Interval]:
    """95 % intervals of `precision`, `recall` and `f1` of all types, over the sentences."""
    there, said = entities(truth), entities(predicted)
    rows = [
        np.bincount([entity[0] for entity in found], minlength=len(truth))
        for found in (there & said, said, there)
    ]
    scores = {
        "precision": lambda sums: ratio(sums[:, 0], sums[:, 1]),
        "recall": lambda sums: ratio(sums[:, 0], sums[:, 2]),
        "f1": lambda sums: ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2]),
    }
    return intervals_of_sums(np.stack(rows, axis=1), scores)


def _scores(there: int, said: int, both: int) -> dict[str, float]:
    return {
        "precision": both / said if said else 0.0,
        "recall": both / there if there else 0.0,
        "f1": 2 * both / (there + said) if there + said else 0.0,
        "support": there,
    }
