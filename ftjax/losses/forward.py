"""One forward pass, as losses and penalties see it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

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
) -> Forward:
    """Runs the network over a batch; see `Forward`."""
    tuned = network(parameters, key)
    return Forward(network, parameters, frozen, tuned, tuned(batch, key=key), batch, key)


def of_outputs(loss: Callable) -> Callable:
    """A loss of (outputs, batch) as one of a pass."""
    return lambda passed: loss(passed.outputs, passed.batch)
