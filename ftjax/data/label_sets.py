"""Several labels, or none, of each text: from how files hold them to zeros and ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftjax.data.labels import class_name
from ftjax.data.sources.records import bad_record, of_each
from ftjax.data.written_out import as_written

SEPARATORS = ("|", ";", ",", "/")
ZEROS_AND_ONES = (
    "If it holds a 0 or 1 for each label, set config.data.label_format = 'zeros_and_ones'."
)
YES_AND_NO = {"1": 1, "0": 0, "True": 1, "False": 0, "true": 1, "false": 0}


def encode_label_sets(
    records: Sequence[Mapping[str, Any]],
    classes: list[str] | None = None,
    *,
    separator: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Lists of names as zeros and ones.

    Names are compared as `encode_labels` does it. The order of a list does not count.

    Args:
        records: each with `label`: a list, one written out (`as_written`), or names with
            `separator` between them; empty for none.
        classes: all there are; those found here, sorted, if None (the training split).
        separator: what stands between names in a text; None where there are lists.

    Returns:
        int32 [records, classes], 1 where a record has the label; and the classes.

    Raises:
        ValueError: a record without such a list, a label that is not among `classes`, or no label
            at all in training; names the record.
    """
    found = of_each(records, lambda index: _names(records, index, separator))
    if classes is None:
        classes = sorted(set().union(*found))
        if not classes:
            raise ValueError(
                f"{getattr(records, 'name', 'records')}: no record has a label; there is nothing "
                "to learn."
            )
    number = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(records), len(classes)), np.int32)

    def fill(index: int) -> None:
        for name in found[index]:
            if name not in number:
                known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
                raise bad_record(
                    records,
                    index,
                    f"the label {name!r} was never seen in training (known: {known}). Add training "
                    "examples of it or remove it.",
                )
            labels[index, number[name]] = 1

    of_each(records, fill)
    return labels, classes


def encode_label_vector(records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> np.ndarray:
    """A list of a 0 or 1 for each class as int32 [records, classes].

    Args:
        records: each with such a list, or one written out, as `label`.
        classes: what its places stand for.

    Raises:
        ValueError: no such list, or not as long as there are classes; names the record.
    """

    def vector(index: int) -> list[int]:
        label = records[index]["label"]
        values = _as_list(label)
        if values is None or len(values) != len(classes):
            raise bad_record(
                records,
                index,
                f"the label is {_shown(label)}; a list of {len(classes)} zeros and ones is needed, "
                "one for each of config.data.label_names.",
            )
        return [_zero_or_one(records, index, "label", value) for value in values]

    return np.asarray(of_each(records, vector), np.int32)


def encode_label_columns(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> np.ndarray:
    """A column of zeros and ones for each class as int32 [records, classes].

    Args:
        records: with such columns.
        columns: our name of each -> the class.

    Raises:
        ValueError: something else in one; names the record.
    """

    def vector(index: int) -> list[int]:
        record = records[index]
        return [_zero_or_one(records, index, name, record[of]) for of, name in columns.items()]

    return np.asarray(of_each(records, vector), np.int32)


def describe_label_sets(labels: np.ndarray, classes: Sequence[str], most: int = 12) -> str:
    """How many examples have each label, and how many have none or several.

    Args:
        labels: int [examples, classes], zeros and ones.
        classes: names.
        most: of so many labels and more, only the extremes.
    """
    counts, each = labels.sum(0), labels.sum(1)
    pairs = [f"{name} {count:,}" for name, count in zip(classes, counts, strict=True)]
    if len(pairs) > most:
        fewest, highest = int(counts.argmin()), int(counts.argmax())
        pairs = [f"{len(pairs)} labels, from {pairs[fewest]} to {pairs[highest]}"]
    none, several = np.count_nonzero(each == 0), np.count_nonzero(each > 1)
    return f"{', '.join(pairs)}; {none:,} without a label, {several:,} with several"


def _names(records: Sequence[Mapping[str, Any]], index: int, separator: str | None) -> set[str]:
    label = records[index]["label"]
    told = f"the label is {_shown(label)}"
    if isinstance(label, str) and separator is not None:
        parts = [part for part in label.split(separator) if part.strip()]
    else:
        parts = _as_list(label)
        if parts is None:
            seen = [s for s in SEPARATORS if isinstance(label, str) and s in label]
            such = f" (such as {seen[0]!r})" if seen else ""
            raise bad_record(
                records,
                index,
                f"{told}, which is no list. Set config.data.label_separator to what stands between "
                f"labels{such}, or use objective 'classification' for one label each.",
            )
        if any(isinstance(part, float | bool) for part in parts):
            raise bad_record(records, index, f"{told}. {ZEROS_AND_ONES}")
        if len(set(map(str, parts))) < len(parts):
            raise bad_record(records, index, f"{told}, which names a label twice. {ZEROS_AND_ONES}")
    names = [class_name(part) for part in parts]
    if None in names:
        raise bad_record(records, index, f"{told}; each of its parts must be a name or a number.")
    return {name for name in names if name is not None}


def _as_list(label: Any) -> list | None:
    """A list, or one written out; None for anything else."""
    if isinstance(label, str):
        label = as_written(label) if label.strip() else []
    return list(label) if isinstance(label, list | tuple) else None


def _zero_or_one(records: Sequence[Mapping[str, Any]], index: int, name: str, value: Any) -> int:
    found = YES_AND_NO.get(str(class_name(value)))
    if found is None:
        raise bad_record(records, index, f"{name} is {value!r}; 0 or 1 is needed.")
    return found


def _shown(label: Any) -> str:
    text = repr(label)
    return text if len(text) < 60 else text[:57] + "..."
