"""A finished run's result as tables for a person, whatever the width of the terminal."""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ftjax.runs.result import Result

BASELINES = {
    "pretrained": "pretrained network",
    "majority": "majority answer",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
    "frozen_linear_head": "frozen network + linear head",
}
FITTED = ("tfidf", "frozen")
MOST_CLASSES = 20
MOST_ANSWERS = 5
LONGEST_ANSWER = 300
ANSWERS_OF = {"people": "people", "before": "pretrained network", "after": "fine-tuned"}


def print_result(console: Console, result: Result, workdir: str) -> None:
    """The scores on the test split next to what they cost and what was forgotten."""
    title = f"fine-tuned ({result.method})"
    rows = _rows(result, result.metrics, title)
    columns = list(rows[title])
    heading = f"{result.name}: {result.test_examples:,} test examples, seen once"
    _print_table(console, heading, "", columns, rows)
    if result.intervals:
        _print_intervals(console, result, title)
    if result.details.get("answers"):
        _print_answers(console, result)
    if "per_class" in result.details:
        _print_classes(console, result.details["per_class"])
    cost = Table(show_header=False, title="what it cost")
    cost.add_column()
    cost.add_column(overflow="fold")
    for name, value in _costs(result):
        cost.add_row(name, value)
    cost.add_row("run folder", workdir)
    console.print(cost)
    if result.wise_ft:
        _print_between(console, result, columns)


def _print_intervals(console: Console, result: Result, title: str) -> None:
    """How sure the scores are."""
    rows = _rows(result, result.intervals, title)
    heading = "95 % intervals, by bootstrap over the test examples"
    _print_table(console, heading, "", list(rows[title]), rows)


def _print_answers(console: Console, result: Result) -> None:
    """How like people's the answers are, and some of them side by side."""
    rows = {
        title: {
            "taken for a person's": result.metrics[f"tone/{name}"],
            "95 % interval": result.intervals[f"tone/{name}"],
            "chrF": result.metrics.get(f"answers/chrf_{name}"),
        }
        for name, title in ANSWERS_OF.items()
    }
    heading = (
        "tone: a classifier that tells people from the pretrained network "
        f"({result.metrics['tone/accuracy']:.0%} right) takes of answers"
    )
    _print_table(console, heading, "", list(rows["people"]), rows)
    shown = result.details["answers"][:MOST_ANSWERS]
    table = Table(show_header=False, title=f"{len(shown)} of the answers, drawn at random")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for answer in shown:
        table.add_row("asked", _shortened(answer["question"]))
        table.add_row("a person", _shortened(answer["person"]))
        table.add_row("before", _shortened(answer["before"]))
        table.add_row("after", _shortened(answer["after"]), end_section=True)
    console.print(table)


def _shortened(text: str) -> str:
    """On one line; of a long text the end, which is what was asked or said last."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_ANSWER else f"... {text[-LONGEST_ANSWER:]}"


def _print_classes(console: Console, report: Mapping[str, Mapping[str, float]]) -> None:
    """Precision, recall and F1 of each class, the most frequent first."""
    shown = sorted(report, key=lambda name: -report[name]["support"])[:MOST_CLASSES]
    left = len(report) - len(shown)
    title = "by class" + (f" ({left} rarer ones in result.json)" if left else "")
    rows = {name: {**report[name], "examples": int(report[name]["support"])} for name in shown}
    _print_table(console, title, "", ["precision", "recall", "f1", "examples"], rows)


def _print_between(console: Console, result: Result, columns: Sequence[str]) -> None:
    """What networks between the pretrained and the tuned one score, and have forgotten."""
    shown = [*(f"validation/{name}" for name in columns), *(f"test/{name}" for name in columns)]
    shown = [name for name in [*shown, "retention/change"] if name in result.metrics]
    alphas = {f"{entry['alpha']:g}": entry["metrics"] for entry in result.wise_ft}
    rows = {
        name.replace("_", " "): {alpha: metrics[name] for alpha, metrics in alphas.items()}
        for name in shown
    }
    title = "between the pretrained network (alpha 0) and the tuned one (1)"
    _print_table(console, title, "alpha", list(alphas), rows)


def _print_table(
    console: Console,
    title: str,
    corner: str,
    columns: Sequence[str],
    rows: Mapping[str, Mapping[str, Any]],
) -> None:
    """Numbers by row and column; where not all columns fit, in tables one below the other."""
    names = [name.replace("_", " ") for name in columns]
    cells = [[_cell(row.get(column)) for column in columns] for row in rows.values()]
    widths = [max(map(len, found)) for found in zip(names, *cells, strict=True)]
    labels = [corner, *rows]
    first = min(max(map(cell_len, labels)), console.width // 2)
    if _table_width(first, widths) > console.width:
        # Names break at their words.
        words = [max(map(len, name.split())) for name in names]
        widths = [max(word, *map(len, found)) for word, *found in zip(words, *cells, strict=True)]
        longest_word = max(cell_len(word) for label in labels for word in label.split())
        first = min(first, max(longest_word, console.width // 4))
    for start, end in _groups(console.width, first, widths):
        table = Table(title=title if start == 0 else None)
        table.add_column(corner, width=first, overflow="fold")
        for name, width in zip(names[start:end], widths[start:end], strict=True):
            table.add_column(name, width=width, justify="right")
        for label, row in zip(rows, cells, strict=True):
            tuned = label.startswith("fine-tuned")
            table.add_row(label, *row[start:end], style="bold" if tuned else None)
        console.print(table)


def _groups(room: int, first: int, widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and end of the columns of each table, as many as fit."""
    start = 0
    while start < len(widths):
        end = start + 1
        while end < len(widths) and _table_width(first, widths[start : end + 1]) <= room:
            end += 1
        yield start, end
        start = end


def _table_width(first: int, widths: Sequence[int]) -> int:
    """With a line and two spaces around each column."""
    return 1 + sum(width + 3 for width in (first, *widths))


def _cell(value: float | Sequence[float] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_cell, value))}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _rows(result: Result, values: Mapping[str, Any], title: str) -> dict[str, dict[str, Any]]:
    """Title -> metric -> value on the test split; the tuned network last."""
    rows: dict[str, dict[str, Any]] = {}
    seen = result.details.get("baseline_examples", {}).get("train")
    for name, value in values.items():
        split, *baseline, metric = name.split("/")
        if split == "test" and baseline:
            told = BASELINES.get(baseline[0], baseline[0].replace("_", " "))
            if seen and baseline[0].startswith(FITTED):
                told += f" (on {seen[0]:,} of {seen[1]:,} training examples)"
            rows.setdefault(told, {})[metric] = value
    rows[title] = {
        name.removeprefix("test/"): value
        for name, value in values.items()
        if name.startswith("test/") and name.count("/") == 1
    }
    return rows


def _costs(result: Result) -> list[tuple[str, str]]:
    cost, metrics = result.cost, result.metrics
    rows = [
        ("seconds, whole run", f"{cost.seconds:.0f}"),
        ("seconds, training steps", f"{cost.train_seconds:.0f}"),
        ("seconds, compiling steps", f"{cost.compile_seconds:.0f}"),
        ("examples per second", f"{cost.examples_per_second:.1f}"),
        ("peak memory", f"{cost.peak_memory_bytes / 2**30:.2f} GiB"),
        ("trained parameters", f"{cost.trainable_parameters:,} of {cost.parameters:,}"),
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
    # What is printed holds names of others: brackets and colons in them mean nothing.
    console = functools.partial(Console, markup=False, emoji=False, highlight=False)
    return console() if sys.stdout.isatty() else console(width=120, soft_wrap=True)
