"""Timing two sides in turn, so that a machine that slows down slows both."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table

OURS = "ftjax"


@dataclasses.dataclass
class Timing:
    """Seconds of one side.

    Attributes:
        seconds: of each round.
        compile_seconds: before the first.
    """

    seconds: list[float]
    compile_seconds: float = 0.0

    def summary(self) -> dict:
        """Minimum, median and compile time."""
        return {
            "minimum": min(self.seconds),
            "median": statistics.median(self.seconds),
            "compile": self.compile_seconds,
        }


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Each side once per round, after a first call that is not counted but as compile time."""
    timings = {name: Timing([], seconds_of(side)) for name, side in sides.items()}
    for _ in range(rounds):
        for name, side in sides.items():
            timings[name].seconds.append(seconds_of(side))
    return timings


def seconds_of(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(
    console: Console, title: str, timings: Mapping[str, Timing], count: int = 0, of: str = ""
) -> dict:
    """A table of one comparison, and the same as JSON values.

    Args:
        console: for a person.
        title: what was timed.
        timings: `OURS` and others.
        count: of what a round does, for a column of speeds.
        of: what is counted.
    """
    table = Table(title=title)
    speeds = [f"{of}/s"] if count else []
    columns = ["minimum s", "median s", "first call s", *speeds, "ftjax is faster by"]
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    ours, values = timings[OURS].summary(), {}
    for name, timing in timings.items():
        summary = timing.summary()
        ratios = [summary[key] / ours[key] for key in ("minimum", "median")]
        values[name] = {**summary, "seconds": timing.seconds, "ratio_of_medians": ratios[1]}
        cells = [f"{summary[key]:.3f}" for key in ("minimum", "median", "compile")]
        if count:
            cells.append(f"{count / summary['median']:.1f}")
        shown = "" if name == OURS else f"{ratios[1]:.2f}x (of minima {ratios[0]:.2f}x)"
        table.add_row(name, *cells, shown)
    console.print(table)
    return values
