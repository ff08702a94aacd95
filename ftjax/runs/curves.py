"""A run's curves as a picture: losses, learning rate and validation scores over the steps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANEL_INCHES = (4.5, 3.2)
COLUMNS = 3


def curves(folder: str | Path) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """What a run logged, by metric.

    Args:
        folder: of the run, finished or not.

    Returns:
        Metric ("loss", "accuracy") -> "train" or "validation" -> steps and values.

    Raises:
        FileNotFoundError: nothing was logged there.
    """
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    file = Path(folder) / "metrics.jsonl"
    for text in file.read_text("utf-8").splitlines() if file.exists() else ():
        # The last line may be half of one while the run goes on, or after it was killed.
        try:
            line = json.loads(text)
        except ValueError:
            continue
        for name, value in line.items():
            split, _, metric = name.rpartition("/")
            if split:
                steps, values = found.setdefault(metric, {}).setdefault(split, ([], []))
                steps.append(int(line["step"]))
                values.append(value)
    if not found:
        raise FileNotFoundError(f"{folder} holds no metrics.jsonl with a line in it yet.")
    return found


def draw(folders: Sequence[str | Path], file: str | Path) -> None:
    """Draws runs over one another, a panel per metric and a colour per run.

    Args:
        folders: of the runs.
        file: to be written; its ending says the format (.png, .svg, .pdf).

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError: a folder holds no metrics.
        ValueError: the ending is none that matplotlib can write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Curves need matplotlib: pip install 'ftjax[plot]'.") from error
    runs = {str(folder): curves(folder) for folder in folders}
    metrics = list(dict.fromkeys(name for found in runs.values() for name in found))
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure((PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    if Path(file).suffix.removeprefix(".").lower() not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"{file}: end its name in .png, .svg or .pdf.")
    panels: Any = figure.subplots(rows, columns, squeeze=False).flat
    for panel, metric in zip(panels, metrics, strict=False):
        for number, (folder, found) in enumerate(runs.items()):
            for split, (steps, values) in found.get(metric, {}).items():
                style = "o-" if split == "validation" else "-"
                label = split if len(runs) == 1 else f"{folder} {split}"
                panel.plot(steps, values, style, color=f"C{number}", markersize=3, label=label)
        panel.set_title(metric.replace("_", " "))
        panel.set_xlabel("step")
        panel.legend(fontsize="small")
    for panel in list(panels)[len(metrics) :]:
        panel.set_axis_off()
    figure.savefig(file, dpi=120)
