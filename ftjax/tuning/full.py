"""Full fine-tuning: everything moves."""

from collections.abc import Callable

from flax import nnx


def full(network: nnx.Module) -> Callable[[str], bool]:
    """Every parameter is trainable."""
    return lambda path: True
