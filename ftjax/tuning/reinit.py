"""Blocks that begin at random: the top ones know most about the pretraining's own task."""

from flax import nnx

from ftjax.models.layers import Network
from ftjax.tuning.targets import block_of


def reinitialise_top(network: Network, fresh: Network, count: int) -> None:
    """The top blocks of each stack get the values of a network at random.

    (Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning, https://arxiv.org/abs/2006.05987.)

    Args:
        network: a published network; changed in place.
        fresh: one of the same structure, newly initialised.
        count: how many blocks of each stack.

    Raises:
        ValueError: there are not that many.
    """
    leaves = {
        ".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(network))
    }
    new = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(fresh))}
    depths: dict[str, int] = {}
    for block in filter(None, map(block_of, leaves)):
        depths[block.stack] = max(depths.get(block.stack, 0), block.index + 1)
    if count > min(depths.values(), default=0):
        sizes = ", ".join(f"{stack}: {depth} blocks" for stack, depth in depths.items())
        raise ValueError(f"config.tuning.reinit_top = {count}, but there are only {sizes}.")
    for path, leaf in leaves.items():
        block = block_of(path)
        if block is not None and block.index >= depths[block.stack] - count:
            leaf.set_value(new[path].get_value())
