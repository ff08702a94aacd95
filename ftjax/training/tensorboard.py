"""Metrics as TensorBoard reads them."""

from collections.abc import Callable
from pathlib import Path

from ftjax.files import writing
from ftjax.runs.folder import CONTINUES

EventWriter = Callable[[int, dict[str, float]], None]


def event_writer(folder: Path, enabled: bool) -> EventWriter:
    """What writes the metrics of a step to event files in a folder, if that is asked for.

    Raises:
        ImportError: the package is not installed; says which extra has it.
    """
    if not enabled:
        return lambda step, metrics: None
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "config.training.tensorboard = True needs pip install 'ftjax[tensorboard]'."
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, metrics: dict[str, float]) -> None:
        with writing(folder, "What TensorBoard reads", CONTINUES):
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    return write
