"""How far a long phase is, told to a person wherever the phase runs.

    with shown_on(console):
        for item in track(items, "reading my.csv"):
            ...

On a terminal that is a bar with the time left, elsewhere a line now and then, and nothing for what
takes no longer than a moment. Who is shown nothing, because no `shown_on` is around, pays nothing.
"""

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

PLAIN_SECONDS = 10.0
"""Without a terminal, a line of progress is printed this often."""
SILENT_SECONDS = 2.0
"""What is done sooner shows no bar."""
REDRAW_SECONDS = 0.2
WIDE = 110
"""Columns of a terminal in which there is room for a bar beside the numbers."""

Item = TypeVar("Item")
_console: contextvars.ContextVar[Console | None] = contextvars.ContextVar("console", default=None)


@contextlib.contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Everything tracked inside is shown on a console."""
    before = _console.set(console)
    try:
        yield
    finally:
        _console.reset(before)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, one after the other, with progress for a person.

    Args:
        items: to iterate over.
        what: is being done, such as "measuring test".
        total: how many items there are; their length by default.
    """
    console = _console.get()
    if console is None or console.quiet:
        yield from items
        return
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with _Shown(console, what, count) as shown:
        for item in items:
            yield item
            shown.done += 1


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """A line that says what is done inside and, when it is over, how long it took."""
    console, started = _console.get(), time.monotonic()
    if console is None:
        yield
        return
    console.print(f"{what} ...", end=" ", highlight=False)
    over = "stopped"
    try:
        yield
        over = f"{time.monotonic() - started:.1f} seconds"
    finally:
        console.print(over, highlight=False)


class _Shown:
    """Shows from a thread of its own, so that a single long item is no silence.

    Attributes:
        done: items so far.
    """

    def __init__(self, console: Console, what: str, total: int):
        self.done = 0
        self._console, self._what, self._total = console, what, total
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "_Shown":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _show(self) -> None:
        if self._over.wait(SILENT_SECONDS):
            return
        if not self._console.is_terminal:
            while True:
                self._console.print(self._line(), highlight=False)
                if self._over.wait(PLAIN_SECONDS):
                    return
        with bar(self._console, f"{self._what}: {{task.completed:,.0f}}/{{task.total:,}}") as shown:
            task = shown.add_task("", total=self._total)
            while not self._over.wait(REDRAW_SECONDS):
                shown.update(task, completed=self.done)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        line = f"{self._what}: {self.done:,} of {self._total:,}, "
        if not self.done:
            return line + f"{seconds:.0f} seconds so far"
        return line + f"{seconds / self.done * max(self._total - self.done, 0):.0f} seconds left"


def bar(console: Console, text: str) -> Progress:
    """A bar that shows on a terminal only, with a text, a description and the time left.

    Args:
        console: where.
        text: rich's template, such as "step {task.completed:.0f}".
    """
    drawn = [BarColumn(bar_width=24)] if console.width >= WIDE else []
    return Progress(
        TextColumn(text),
        *drawn,
        TextColumn("{task.description}", table_column=Column(overflow="fold")),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
