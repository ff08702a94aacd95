"""What a person sees while a run goes on: bars with the time left, a live line, sentences."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ftjax.runs.folder import RunFolder
from ftjax.training.loop import Clock

PLAIN_SECONDS = 10.0
"""Without a terminal, a line of progress is printed this often."""
SILENT_SECONDS = 2.0
"""What is done sooner shows no bar."""


class Track(Protocol):
    """Shows how far an iteration is."""

    def __call__(self, items: Sequence, what: str) -> Iterator:
        """The items, one after the other.

        Args:
            items: to iterate over.
            what: is being done, such as "measuring test".
        """
        ...


def no_track(items: Sequence, what: str) -> Iterator:
    """Shows nothing."""
    return iter(items)


def tracker(console: Console) -> Track:
    """Bars on a terminal, and lines now and then elsewhere, for what takes longer than a moment."""

    def track(items: Sequence, what: str) -> Iterator:
        started = time.monotonic()
        printed = started + SILENT_SECONDS
        bar = _bar(console, f"{what}: {{task.completed:.0f}}/{{task.total}}")
        task = bar.add_task("", total=len(items))
        try:
            for done, item in enumerate(items):
                now = time.monotonic()
                if now >= printed and console.is_terminal:
                    bar.start()
                    printed = float("inf")
                elif now >= printed:
                    left = (now - started) / max(done, 1) * (len(items) - done)
                    line = f"{what}: {done:,} of {len(items):,}, {left:.0f} seconds left"
                    console.print(line, highlight=False)
                    printed = now + PLAIN_SECONDS
                bar.update(task, completed=done)
                yield item
        finally:
            bar.stop()

    return track


def _bar(console: Console, text: str) -> Progress:
    return Progress(
        TextColumn(text),
        BarColumn(bar_width=24),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


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
        self._live = _bar(console, "step {task.completed:.0f}/{task.total:.0f}")
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
