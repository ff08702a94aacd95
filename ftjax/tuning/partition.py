"""Splitting a network into what is trained and what stays.

From here on everything sees a trainable tree next to a frozen one, both flat dicts from dotted path
to array.
"""

from collections.abc import Callable

import jax
from flax import nnx

Parameters = dict[str, jax.Array]
Rebuild = Callable[[Parameters, Parameters], nnx.Module]


def partition(
    network: nnx.Module, is_trainable: Callable[[str], bool]
) -> tuple[Rebuild, Parameters, Parameters]:
    """Splits a network into what is trained, what stays, and how to put them together again.

    Args:
        network: the network.
        is_trainable: dotted parameter path -> whether it is trained.

    Returns:
        (rebuild, trainable, frozen). `rebuild(trainable, frozen)` is the network as a pure function
        of the two, to be called inside jit; values may have other dtypes or be tracers.

    Raises:
        ValueError: if nothing is trainable.
    """
    graphdef, state = nnx.split(network)
    leaves = list(nnx.to_flat_state(state))
    names = [".".join(map(str, path)) for path, _ in leaves]
    parameters = {name: leaf.get_value() for name, (_, leaf) in zip(names, leaves, strict=True)}
    trainable = {
        name: leaf.get_value()
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if isinstance(leaf, nnx.Param) and is_trainable(name)
    }
    frozen = {name: value for name, value in parameters.items() if name not in trainable}
    if not trainable:
        raise ValueError("The tuning method leaves no parameter trainable; choose another.")

    def rebuild(trainable: Parameters, frozen: Parameters) -> nnx.Module:
        values = trainable | frozen
        filled = [
            (path, leaf.replace(values[name]))
            for name, (path, leaf) in zip(names, leaves, strict=True)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(filled))

    return rebuild, trainable, frozen
