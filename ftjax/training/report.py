"""What a person sees of a run: notes, a live line, and the table at the end."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ftjax.runs.folder import RunFolder
from ftjax.training.loop import Clock

BASELINES = {
    "pretrained": "pretrained network",
    "majority": "majority answer",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
    "frozen_linear_head": "frozen network + linear head",
}

PLAIN_SECONDS = 10.0
"""Without a terminal, a line of progress is printed this often."""


class RunReport:
    """Tells a person, and metrics.jsonl, how a run goes (see `ftjax.training.loop.Reporter`).

    Used as a context manager around training, for the live line.
    """

    def __init__(self, folder: RunFolder, total_steps: int, console: Console):
        self.console = console
        self._folder = folder
        self._total = total_steps
        self._printed = 0.0
        self._live = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("", total=total_steps)

    def __enter__(self) -> "RunReport":
        self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._live.stop()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A line in metrics.jsonl."""
        self._folder.log(step, metrics)

    def progress(self, step: int, metrics: dict[str, float], clock: Clock) -> None:
        """The live line: step, loss, learning rate, examples/s, time left."""
        speed = clock.examples_per_second()
        text = (
            f"loss {metrics['train/loss']:.4f}  learning rate "
            f"{metrics['train/learning_rate']:.2e}  {speed:.1f} examples/s"
        )
        self._live.update(self._task, completed=step, description=text)
        if self.console.is_terminal or time.monotonic() - self._printed < PLAIN_SECONDS:
            return
        self._printed = time.monotonic()
        left = clock.train / max(step, 1) * (self._total - step)
        self.console.print(f"step {step}/{self._total}  {text}  about {left:.0f} s left")

    def say(self, message: str) -> None:
        """A sentence above the live line."""
        self.console.print(message, highlight=False)


def print_result(console: Console, result: dict, workdir: str) -> None:
    """The scores on the test split next to what they cost and what was forgotten."""
    rows = _rows(result)
    columns = list(rows[result["title"]])
    table = Table(title=f"{result['name']}: {result['test_examples']:,} test examples, seen once")
    table.add_column("")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for title, scores in rows.items():
        cells = [f"{scores[name]:.3f}" if name in scores else "" for name in columns]
        table.add_row(title, *cells, style="bold" if title == result["title"] else None)
    console.print(table)
    cost = Table(show_header=False, title="what it cost")
    for name, value in _costs(result):
        cost.add_row(name, value)
    cost.add_row("run folder", workdir)
    console.print(cost)
    if "wise_ft" in result:
        console.print(_between(result, columns))


def _between(result: dict, columns: list[str]) -> Table:
    """What networks between the pretrained and the tuned one score, and have forgotten."""
    table = Table(title="between the pretrained network (alpha 0) and the tuned one (1)")
    shown = [*(f"validation/{name}" for name in columns), *(f"test/{name}" for name in columns)]
    shown = [name for name in [*shown, "retention/change"] if name in result["metrics"]]
    table.add_column("alpha")
    for entry in result["wise_ft"]:
        table.add_column(f"{entry['alpha']:g}", justify="right")
    for name in shown:
        cells = (f"{entry['metrics'][name]:.3f}" for entry in result["wise_ft"])
        table.add_row(name.replace("_", " "), *cells)
    return table


def _rows(result: dict) -> dict[str, dict[str, float]]:
    """Title -> metric -> score on the test split; the tuned network last."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in result["metrics"].items():
        split, *baseline, metric = name.split("/")
        if split == "test" and baseline:
            rows.setdefault(BASELINES.get(baseline[0], baseline[0]), {})[metric] = value
    rows[result["title"]] = {
        name.removeprefix("test/"): value
        for name, value in result["metrics"].items()
        if name.startswith("test/") and name.count("/") == 1
    }
    return rows


def _costs(result: dict) -> list[tuple[str, str]]:
    cost, metrics = result["cost"], result["metrics"]
    rows = [
        ("seconds, whole run", f"{cost['seconds']:.0f}"),
        ("seconds, training steps", f"{cost['train_seconds']:.0f}"),
        ("seconds, compiling steps", f"{cost['compile_seconds']:.0f}"),
        ("examples per second", f"{cost['examples_per_second']:.1f}"),
        ("peak memory", f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB"),
        (
            "trained parameters",
            f"{cost['trainable_parameters']:,} of {cost['parameters']:,}",
        ),
    ]
    if "retention/before" in metrics:
        before, after, change = (
            metrics[f"retention/{name}"] for name in ("before", "after", "change")
        )
        text = f"{before:.3f} before, {after:.3f} after: {change:+.3f}"
        if "retention/change_low" in metrics:
            low, high = metrics["retention/change_low"], metrics["retention/change_high"]
            text += f" [{low:+.3f}, {high:+.3f}]"
        rows.append(("retention on unrelated text", text))
    return rows


def make_console() -> Console:
    """A console on standard output; plain and wide enough where that is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=120, soft_wrap=True)
