"""What a person sees while training goes on: a live line, sentences."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from ftjax.progress import PLAIN_SECONDS, bar
from ftjax.runs.folder import RunFolder
from ftjax.training.loop import Clock


class RunReport:
    """Tells a person, and metrics.jsonl, how training goes (see `ftjax.training.loop.Reporter`).

    Used as a context manager around training, for the live line.
    """

    def __init__(
        self,
        folder: RunFolder,
        total_steps: int,
        console: Console,
        also: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    ):
        """Prepares the line.

        Args:
            folder: of the run.
            total_steps: the schedule's length.
            console: for a person.
            also: told what metrics.jsonl is told.
        """
        self.console = console
        self._folder = folder
        self._total = total_steps
        self._also = also
        self._printed = 0.0
        self._live = bar(console, "step {task.completed:.0f}/{task.total:.0f}")
        self._task = self._live.add_task("", total=total_steps)

    def __enter__(self) -> "RunReport":
        self._live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.stop()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A line in metrics.jsonl."""
        self._folder.log(step, metrics)
        self._also(step, metrics)

    def logged(self) -> int:
        """CRC-32 of metrics.jsonl so far."""
        return self._folder.logged()

    def progress(self, step: int, metrics: dict[str, float], clock: Clock) -> None:
        """The live line: step, loss, learning rate, examples/s, time left."""
        speed = clock.examples_per_second()
        text = (
            f"loss {metrics['train/loss']:.4f}  learning rate "
            f"{metrics['train/learning_rate']:.2e}  {speed:.1f} examples/s"
        )
        self._live.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._printed >= PLAIN_SECONDS:
            left = clock.train / step * (self._total - step) if step else 0.0
            self.say(f"step {step}/{self._total}  {text}  {left:.0f} seconds left")
            self._printed = now

    def say(self, message: str) -> None:
        """A sentence for the person."""
        self.console.print(message, highlight=False)
