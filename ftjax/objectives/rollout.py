"""What a network does before it is updated: an objective's part of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ftjax.data.examples import Batch
from ftjax.models.layers import Network


class Rollout(NamedTuple):
    """What a network does before it is updated, outside of the step, and what it learns from that.

    Attributes:
        outputs: (network, batch, a random key per row) -> arrays [rows, ...]; runs inside jit.
        batch: (batch, outputs), on the host -> the batch that steps are given.
        copies: rows of each example, one behind the other.
        updates: how many steps are given the same batch.
        score: (network, batch of steps) -> further arrays of it, which the network says before the
            first of them; None for nothing.
    """

    outputs: Callable[[Network, Mapping[str, jax.Array], jax.Array], Any]
    batch: Callable[[Batch, Any], Batch]
    copies: int
    updates: int
    score: Callable[[Network, Mapping[str, jax.Array]], dict[str, jax.Array]] | None
