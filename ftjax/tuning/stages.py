"""When which parameters begin to move."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from ftjax.tuning.learning_rates import blocks_above


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of training; each is compiled once per shape of the batch.

    Attributes:
        first_epoch: when it begins.
        joining: paths that begin to move here.
        moving: these and all that moved before.
    """

    first_epoch: int
    joining: tuple[str, ...]
    moving: frozenset[str]


def make_stages(paths: Collection[str], settings: Any) -> list[Stage]:
    """The stages of a run; one, unless the config asks for gradual unfreezing.

    With `unfreeze_epochs`, what has no block above it begins (the head), blocks join one after the
    other from the top, and embeddings last (Howard & Ruder 2018, section 3.3).

    Args:
        paths: of all trainable parameters.
        settings: the `tuning` part of the config.
    """
    groups, every = [list(paths)], 0
    if (epochs := settings.get("unfreeze_epochs")) is not None:
        groups, every = _from_the_top(paths), epochs
    stages, moving = [], frozenset()
    for index, group in enumerate(groups):
        moving |= set(group)
        stages.append(Stage(index * every, tuple(group), moving))
    return stages


def stage_of(stages: Sequence[Stage], epoch: int) -> int:
    """Index of the stage that an epoch belongs to."""
    return max(index for index, stage in enumerate(stages) if stage.first_epoch <= epoch)


def _from_the_top(paths: Collection[str]) -> list[list[str]]:
    heights = blocks_above(list(paths))
    levels = sorted(set(heights.values()))
    return [[path for path in paths if heights[path] == level] for level in levels]
