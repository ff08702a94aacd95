"""Numbers to be predicted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftjax.data.sources.records import bad_record, of_each


def encode_numbers(records: Sequence[Mapping[str, Any]], field: str = "label") -> np.ndarray:
    """A number of each record as float64 [records].

    Args:
        records: each with a number in the field, or one written out with a point.
        field: our name of it.

    Raises:
        ValueError: something else, NaN or infinity; names the record.
    """
    return np.array(of_each(records, lambda index: _number(records, index, field)))


def describe_numbers(numbers: np.ndarray) -> str:
    """What a person should know of them.

    Args:
        numbers: float [examples].
    """
    return (
        f"from {numbers.min():.4g} to {numbers.max():.4g}, mean {numbers.mean():.4g}, "
        f"standard deviation {numbers.std():.4g}"
    )


def _number(records: Sequence[Mapping[str, Any]], index: int, field: str) -> float:
    label = records[index][field]
    try:
        number = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise bad_record(
            records,
            index,
            f"the {field} is {label!r}; a finite number such as 3.5 is needed. Fill it in or leave "
            "the record out.",
        )
    return number
