"""Layers that draw random numbers by themselves, deep inside networks that know nothing of it."""

from typing import TypeVar

import jax
from flax import nnx

Network = TypeVar("Network", bound=nnx.Module)


class NoiseKey(nnx.Variable):
    """The random key of one layer for one call; there is none outside of training."""


class NoisyLayer(nnx.Module):
    """A layer with a key of its own during training.

    Attributes:
        noise_key: None, or as `give_keys` sets it.
    """

    noise_key: NoiseKey | None

    def __init__(self):
        self.noise_key = nnx.data(None)

    def key(self) -> jax.Array | None:
        """The key, None outside of training."""
        return None if self.noise_key is None else self.noise_key.get_value()


def give_keys(network: Network, key: jax.Array | None) -> Network:
    """Gives each noisy layer of a network a key of its own; None (evaluation) gives none."""
    if key is None:
        return network
    for index, (_, module) in enumerate(nnx.iter_modules(network)):
        if isinstance(module, NoisyLayer):
            module.noise_key = NoiseKey(jax.random.fold_in(key, index))
    return network
