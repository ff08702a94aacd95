"""Names of classes to numbers."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

# How many names a sentence shows, of however many there are.
SHOWN = 5
SHOWN_COUNTS = 12


def encode_labels(
    records: Sequence[dict[str, Any]], field: str = "label", classes: list[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers.

    What a person would read as one name is one class: spaces around it do not count, composed and
    decomposed letters are equal, and 1, 1.0 and "1.0" are the class "1".

    Args:
        records: each with the label in `field`, text or number.
        field: its name.
        classes: the names of the classes; those found here, sorted, if None (the training split).

    Returns:
        int32 [records], and the classes.

    Raises:
        ValueError: a label that is empty, a list, NaN or infinite, or not among `classes`, or fewer
            than two classes in training.
    """
    names = [_label(records, i, field) for i in range(len(records))]
    if classes is None:
        classes = sorted(set(names))
        if len(classes) < 2:
            raise ValueError(
                f"The training split has the single label {classes}; two or more are needed."
            )
    number = {name: index for index, name in enumerate(classes)}
    unknown = [index for index, name in enumerate(names) if name not in number]
    if unknown:
        raise ValueError(_about_unknown(records, names, unknown, classes))
    return np.asarray([number[name] for name in names], np.int32), classes


def describe_labels(labels: np.ndarray, classes: Sequence[str]) -> str:
    """How many examples each class has, as "spam 120, ham 300"; of many classes, the extremes.

    Args:
        labels: int [examples].
        classes: names.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) <= SHOWN_COUNTS:
        pairs = zip(classes, counts, strict=True)
        return ", ".join(f"{name} {count:,}" for name, count in pairs)
    fewest, most = int(counts.argmin()), int(counts.argmax())
    missing = int((counts == 0).sum())
    return (
        f"{len(classes)} classes, from {classes[fewest]} {counts[fewest]:,} to {classes[most]} "
        f"{counts[most]:,}" + (f" ({missing} of them without any)" if missing else "")
    )


def _about_unknown(
    records: Sequence[dict[str, Any]], names: list[str], unknown: list[int], classes: list[str]
) -> str:
    first, *others = Counter(names[index] for index in unknown)
    more = ""
    if len(unknown) > 1:
        more = f" {len(unknown)} records have such labels"
        more += f": {_some([repr(name) for name in (first, *others)])}." if others else "."
    return (
        f"{_where(records, unknown[0])}: the label {first!r} was never seen in training (known: "
        f"{_some(classes)}).{more} Add training examples of what is missing or remove the records."
    )


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides."""
    left = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def _label(records: Sequence[dict[str, Any]], index: int, field: str) -> str:
    label = records[index][field]
    if isinstance(label, float):
        if math.isfinite(label):
            return str(int(label)) if label.is_integer() else str(label)
    elif isinstance(label, int):
        return str(label)
    elif isinstance(label, str) and (name := unicodedata.normalize("NFC", label.strip())):
        whole = re.fullmatch(r"(-?\d+)\.0+", name)
        return whole[1] if whole else name
    raise ValueError(
        f"{_where(records, index)}: the {field} is {label!r}; one name or number is needed."
    )


def _where(records: Sequence[dict[str, Any]], index: int) -> str:
    return f"{getattr(records, 'name', 'records')}, record {index + 1}"
