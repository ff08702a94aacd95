"""A finished run's result as tables for a person."""

import sys

from rich.console import Console
from rich.table import Table

from ftjax.runs.result import Result

BASELINES = {
    "pretrained": "pretrained network",
    "majority": "majority answer",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
    "frozen_linear_head": "frozen network + linear head",
}
MOST_CLASSES = 20


def print_result(console: Console, result: Result, workdir: str) -> None:
    """The scores on the test split next to what they cost and what was forgotten."""
    title = f"fine-tuned ({result.method})"
    rows = _rows(result, title)
    columns = list(rows[title])
    table = Table(title=f"{result.name}: {result.test_examples:,} test examples, seen once")
    table.add_column("")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for row, scores in rows.items():
        cells = [f"{scores[name]:.3f}" if name in scores else "" for name in columns]
        table.add_row(row, *cells, style="bold" if row == title else None)
    console.print(table)
    if "per_class" in result.details:
        console.print(_per_class(result.details["per_class"]))
    cost = Table(show_header=False, title="what it cost")
    for name, value in _costs(result):
        cost.add_row(name, value)
    cost.add_row("run folder", workdir)
    console.print(cost)
    if result.wise_ft:
        console.print(_between(result, columns))


def _per_class(report: dict[str, dict[str, float]]) -> Table:
    """Precision, recall and F1 of each class, the most frequent first."""
    shown = sorted(report, key=lambda name: -report[name]["support"])[:MOST_CLASSES]
    left = len(report) - len(shown)
    table = Table(title="by class" + (f" ({left} rarer ones in result.json)" if left else ""))
    table.add_column("")
    for name in ("precision", "recall", "f1", "examples"):
        table.add_column(name, justify="right")
    for name in shown:
        scores = report[name]
        cells = [f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(name, *cells, f"{scores['support']:,.0f}")
    return table


def _between(result: Result, columns: list[str]) -> Table:
    """What networks between the pretrained and the tuned one score, and have forgotten."""
    table = Table(title="between the pretrained network (alpha 0) and the tuned one (1)")
    shown = [*(f"validation/{name}" for name in columns), *(f"test/{name}" for name in columns)]
    shown = [name for name in [*shown, "retention/change"] if name in result.metrics]
    table.add_column("alpha")
    for entry in result.wise_ft:
        table.add_column(f"{entry['alpha']:g}", justify="right")
    for name in shown:
        cells = (f"{entry['metrics'][name]:.3f}" for entry in result.wise_ft)
        table.add_row(name.replace("_", " "), *cells)
    return table


def _rows(result: Result, title: str) -> dict[str, dict[str, float]]:
    """Title -> metric -> score on the test split; the tuned network last."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in result.metrics.items():
        split, *baseline, metric = name.split("/")
        if split == "test" and baseline:
            told = BASELINES.get(baseline[0], baseline[0].replace("_", " "))
            rows.setdefault(told, {})[metric] = value
    rows[title] = {
        name.removeprefix("test/"): value
        for name, value in result.metrics.items()
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
    return Console() if sys.stdout.isatty() else Console(width=120, soft_wrap=True)
