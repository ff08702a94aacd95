"""Names of classes to numbers."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftjax.data.sources.records import BadRecordError, bad_record, of_each, where_of

# How many names a sentence shows, of however many there are.
SHOWN = 5
SHOWN_COUNTS = 12

# Around a name: white space, and what takes no space at all.
UNSEEN = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")


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
    names = of_each(records, lambda index: _label(records, index, field))
    if classes is None:
        classes = sorted(set(names))
        if len(classes) < 2:
            raise ValueError(
                f"The training split has the single label {classes}; two or more are needed."
            )
    number = {name: index for index, name in enumerate(classes)}
    unknown = [index for index, name in enumerate(names) if name not in number]
    if unknown:
        raise BadRecordError(_about_unknown(records, names, unknown, classes))
    return np.asarray([number[name] for name in names], np.int32), classes


def in_order_of(names: Sequence[str], published: Sequence[str]) -> list[str] | None:
    """The names in the order of those that a published head has for its classes.

    Case does not count, and 0, 1, ... are LABEL_0, LABEL_1, ..., which transformers writes where
    nobody named the classes.

    Args:
        names: as `encode_labels` finds them in data.
        published: in the order of the head's logits.

    Returns:
        One name for each class of the head, as the data spell it, or as the head does where the
        data have no example of it; None if the head has no class for a name.
    """
    spelled = {_folded(name): name for name in names}
    places = [_folded(name) for name in published]
    unnamed = places == [f"label_{index}" for index in range(len(places))]
    if unnamed and all(name in map(str, range(len(places))) for name in spelled):
        return [str(index) for index in range(len(places))]
    clear = len(spelled) == len(names) and len(set(places)) == len(places)
    if not clear or spelled.keys() - set(places):
        return None
    return [spelled.get(place, name) for place, name in zip(places, published, strict=True)]


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
) -> dict[int, str]:
    """A sentence for each record; the first one's counts them."""
    first, *others = Counter(names[index] for index in unknown)
    more = ""
    if len(unknown) > 1:
        more = f" {len(unknown)} records have such labels"
        more += f": {some_names([repr(name) for name in (first, *others)])}." if others else "."
    known, problems = some_names(classes), {}
    for index in unknown:
        what = f"{where_of(records, index)}: the label {names[index]!r} was never seen in training"
        problems[index] = f"{what} (known: {known})."
    problems[unknown[0]] += (
        f"{more} Add training examples of what is missing or remove the records."
    )
    return problems


def some_names(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides."""
    left = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def class_name(label: Any) -> str | None:
    """What a label, text or number, is called; None if it names nothing."""
    if isinstance(label, float):
        if not math.isfinite(label):
            return None
        return str(int(label)) if label.is_integer() else str(label)
    if isinstance(label, int):
        return str(label)
    if not isinstance(label, str):
        return None
    name = _bare(label)
    whole = re.fullmatch(r"(-?\d+)\.0+", name)
    return whole[1] if whole else name or None


def _label(records: Sequence[dict[str, Any]], index: int, field: str) -> str:
    label = records[index][field]
    if (name := class_name(label)) is not None:
        return name
    raise bad_record(records, index, f"the {field} is {label!r}; one name or number is needed.")


def _bare(name: str) -> str:
    return unicodedata.normalize("NFC", UNSEEN.sub("", name))


def _folded(name: str) -> str:
    return _bare(name).casefold()
