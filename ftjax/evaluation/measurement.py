"""What is measured of a network: scores of the task, what it retained, its features."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ftjax.data.examples import Examples
from ftjax.models.layers import Network


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Examples, what is needed of the network for each, and what is made of it.

    Attributes:
        examples: by name, such as the splits.
        outputs: (network, batch) -> array [rows, ...]; runs inside jit.
        score: outputs by name, [examples, ...] in the order of the examples -> what is wanted.
        always: names of what every score needs, such as a catalogue that is ranked.
    """

    examples: Mapping[str, Examples]
    outputs: Callable[[Network, Mapping[str, jax.Array]], jax.Array]
    score: Callable[[dict[str, np.ndarray]], Any]
    always: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Retention:
    """Something the pretrained network could do, measured before and after.

    Attributes:
        measurement: its score is an array that is kept until the comparison.
        compare: (before, after) -> `retention/before`, `retention/after`, `retention/change`
            (below 0: forgotten).
    """

    measurement: Measurement
    compare: Callable[[np.ndarray, np.ndarray], dict[str, float]]
