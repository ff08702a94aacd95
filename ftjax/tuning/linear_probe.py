"""Linear probe: the pretrained network is frozen, only the new head moves."""

from collections.abc import Callable

from flax import nnx


def linear_probe(network: nnx.Module) -> Callable[[str], bool]:
    """Everything outside `backbone` is trainable; dropout stays off inside it.

    (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644.)
    """
    network.deterministic_backbone = True
    return lambda path: not path.startswith("backbone.")
