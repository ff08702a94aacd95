"""Learning rates that differ between parameters, as factors of the schedule's."""

import re
from collections.abc import Sequence
from typing import Any

from ftjax.tuning import METHODS
from ftjax.tuning.masks import is_new
from ftjax.tuning.targets import Block, block_of

# Outside of the blocks and before them: embeddings and what makes them, a norm in front, DeBERTa's
# relative positions and the convolution beside its first block.
BELOW_BLOCKS = re.compile(
    r".*(embed|\.(wte|wpe|shared|pre_layrnorm)\.|\.encoder\.(conv|LayerNorm)\.)", re.IGNORECASE
)


def learning_rate_factors(optimizer: Any, tuning: Any, paths: Sequence[str]) -> dict[str, float]:
    """Path -> what the schedule's rate is multiplied by.

    Three things multiply: `optimizer.head_learning_rate_factor` for the new head,
    `optimizer.layer_decay` to the power of the blocks above (discriminative fine-tuning, Howard &
    Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.1, where it is 1/2.6), and what the
    method says.

    Args:
        optimizer: that part of the config.
        tuning: that part of the config.
        paths: of the trainable parameters.
    """
    heights, decay = blocks_above(paths), optimizer.get("layer_decay", 1.0)
    head, method = optimizer.get("head_learning_rate_factor", 1.0), METHODS[tuning.method]
    return {
        path: decay ** heights[path]
        * (head if is_new(path) else 1.0)
        * method.learning_rate_factor(path, tuning)
        for path in paths
    }


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
    return not is_new(path) and bool(BELOW_BLOCKS.match(path))
