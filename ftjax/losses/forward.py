"""One forward pass, as losses and penalties see it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.models.layers import Network

Parameters = dict[str, jax.Array]
NetworkOf = Callable[[Parameters, jax.Array | None], Network]

# What a pass compares with lies beside the frozen parameters, under names of its own: this and a
# path for the parameter's value before tuning.
START = "start:"


class Forward(NamedTuple):
    """One forward pass.

    Attributes:
        network: (trainable parameters, key) -> network.
        parameters: the trainable ones, as they are now.
        frozen: the others, and what is compared with.
        tuned: the network at `parameters`.
        outputs: of `tuned` for `batch`.
        batch: arrays [rows, ...]; `weights` [rows] or [rows, length].
        key: that `outputs` was computed with; None without randomness.
    """

    network: NetworkOf
    parameters: Parameters
    frozen: Parameters
    tuned: Network
    outputs: Any
    batch: Mapping[str, jax.Array]
    key: jax.Array | None

    def base(self) -> Network:
        """The network before tuning, without randomness or gradient.

        Only trainable parameters have a second copy: for an adapter that is the adapter at its
        start, which changes nothing, over the same frozen network.
        """
        start = {path: self.frozen[START + path] for path in self.parameters}
        return self.network(start, None)

    def with_batch(self, batch: Mapping[str, jax.Array]) -> "Forward":
        """The same network's pass over another batch."""
        return self._replace(batch=batch, outputs=self.tuned(batch, key=self.key))


def forward(
    network: NetworkOf,
    parameters: Parameters,
    frozen: Parameters,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    rows_at_once: int | None = None,
) -> Forward:
    """Runs the network over a batch; see `Forward`.

    Args:
        network: (trainable parameters, key) -> network.
        parameters: the trainable ones.
        frozen: the others.
        batch: arrays [rows, ...].
        key: for dropout; None without.
        rows_at_once: the network holds activations of so many rows, which divide the batch; None
            for all. Outputs must be arrays [rows, ...].
    """
    tuned = network(parameters, key)
    if rows_at_once is None:
        outputs = tuned(batch, key=key)
    else:
        outputs = _in_parts(
            lambda part, key: network(parameters, key)(part, key=key), batch, key, rows_at_once
        )
    return Forward(network, parameters, frozen, tuned, outputs, batch, key)


def _in_parts(
    outputs_of: Callable, batch: Mapping[str, jax.Array], key: jax.Array | None, size: int
) -> Any:
    """Outputs of a batch, a part at a time; the backward pass computes each part again.

    A loss of all outputs has its gradient, and no more than a part's activations are held (Gao et
    al. 2021, GradCache, https://arxiv.org/abs/2101.06983). Each part has its own key, both times.
    """
    rows = len(batch["weights"])
    count = rows // size

    def divided(array):
        # Every so-many-th row, so that each part has rows of every device.
        return jnp.moveaxis(array.reshape(size, count, *array.shape[1:]), 1, 0)

    # What rides along (`replay_...`) has rows of its own, and is no part of the outputs.
    parts = {name: divided(array) for name, array in batch.items() if len(array) == rows}
    keys = None if key is None else jax.random.split(key, count)
    outputs = jax.lax.map(lambda part: jax.checkpoint(outputs_of)(*part), (parts, keys))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, *x.shape[2:]), outputs)


def of_outputs(loss: Callable) -> Callable:
    """A loss of (outputs, batch) as one of a pass."""
    return lambda passed: loss(passed.outputs, passed.batch)
