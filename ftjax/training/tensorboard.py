"""Metrics as TensorBoard reads them."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from ftjax.files import writing
from ftjax.runs.folder import CONTINUES

EventWriter = Callable[[int, dict[str, float]], None]


def require_event_writer(enabled: bool) -> None:
    """Before anything expensive.

    Raises:
        ImportError: the package is not installed; says which extra has it.
    """
    if enabled and importlib.util.find_spec("tensorboardX") is None:
        raise ImportError(
            "config.training.tensorboard = True needs pip install 'ftjax[tensorboard]'."
        )


@contextlib.contextmanager
def event_writer(folder: Path, enabled: bool, step: int) -> Iterator[EventWriter]:
    """What writes the metrics of a step to event files in a folder, if that is asked for.

    Args:
        folder: of the run.
        enabled: whether it is.
        step: the last one that is done; what an earlier session wrote of later ones is not shown.
    """
    if not enabled:
        yield lambda step, metrics: None
        return
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(step: int, metrics: dict[str, float]) -> None:
        with writing(folder, "What TensorBoard reads", CONTINUES):
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    try:
        yield write
    finally:
        # A thread of its own writes the rest.
        with writing(folder, "What TensorBoard reads", CONTINUES):
            writer.close()
