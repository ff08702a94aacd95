"""Learning rates that differ between parameters, as factors of the schedule's."""

from collections.abc import Sequence
from typing import Any

from ftjax.tuning.targets import Block, block_of


def learning_rate_factors(optimizer: Any, tuning: Any, paths: Sequence[str]) -> dict[str, float]:
    """Path -> what the schedule's rate is multiplied by.

    Three things multiply: `optimizer.head_learning_rate_factor` for the new head,
    `optimizer.layer_decay` to the power of the blocks above (discriminative fine-tuning, Howard &
    Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.1, where it is 1/2.6), and for the
    method lora_plus `tuning.learning_rate_ratio` on B (Hayou et al. 2024,
    https://arxiv.org/abs/2402.12354).

    Args:
        optimizer: that part of the config.
        tuning: that part of the config.
        paths: of the trainable parameters.
    """
    heights = blocks_above(paths)
    factors = {}
    for path in paths:
        factor = optimizer.layer_decay ** heights[path]
        if not path.startswith("backbone."):
            factor *= optimizer.head_learning_rate_factor
        if tuning.method == "lora_plus" and path.rpartition(".")[2] == "lora_b":
            factor *= tuning.learning_rate_ratio
        factors[path] = factor
    return factors


def blocks_above(paths: Sequence[str]) -> dict[str, int]:
    """How many blocks lie between a parameter and the head, one more for what is below all blocks.

    In an encoder-decoder each stack counts by itself. Final norms and heads have none above.
    """
    blocks = {path: block_of(path) for path in paths}
    depths: dict[str, int] = {}
    for block in filter(None, blocks.values()):
        depths[block.stack] = max(depths.get(block.stack, 0), block.index + 1)
    deepest = max(depths.values(), default=0)

    def above(path: str, block: Block | None) -> int:
        if block is not None:
            return depths[block.stack] - block.index
        return deepest + 1 if is_below_blocks(path) else 0

    return {path: above(path, block) for path, block in blocks.items()}


def is_below_blocks(path: str) -> bool:
    """Whether a parameter outside the blocks comes before them: embeddings and what makes them."""
    return path.startswith("backbone.") and (
        "embed" in path.lower() or ".wte" in path or ".wpe" in path or ".shared" in path
    )
