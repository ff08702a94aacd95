"""The result's tables on terminals of any width: nothing is cut, nothing is taken for markup."""

import io
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from ftjax.runs.folder import RunFolder
from ftjax.runs.report import make_console, print_result
from ftjax.runs.result import Cost, Result
from ftjax.training.loop import Clock
from ftjax.training.report import RunReport

SCORES = (
    *("accuracy", "macro_f1", "matthews_correlation", "f1", "roc_auc", "loss"),
    "calibration_error",
)
METRICS = {
    **{f"{split}/{name}": 0.125 for split in ("validation", "test") for name in SCORES},
    "test/tfidf_logistic_regression/accuracy": 0.75,
    "test/frozen_linear_head/accuracy": 0.5,
    **{f"retention/{name}": 0.25 for name in ("before", "after", "change")},
}
CLASSES = {
    name: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 1234}
    for name in ("[/b] bracket", "a name of several words that is long", "漢字" * 6, "x" * 90)
}
RESULT = Result(
    *("name", "base", 0, "linear_probe", METRICS, 3, 2, 1234),
    Cost(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2**30, 10, 20),
    {f"{row}/{name}": (0.0625, 0.25) for row in ("test", "test/pretrained") for name in SCORES[:6]},
    [{"alpha": alpha / 10, "metrics": METRICS} for alpha in range(11)],
    {"per_class": CLASSES},
)
FOLDER = "runs/a_name/" + "a_long_variant" * 5 + "/seed-0"


def printed(width):
    console = Console(file=io.StringIO(), width=width, markup=False)
    print_result(console, RESULT, FOLDER)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [200, 120, 80, 60])
def test_nothing_is_cut(width):
    text = printed(width)
    assert "…" not in text
    assert max(map(cell_len, text.splitlines())) <= width
    words = set(text.replace("│", " ").replace("┃", " ").split())
    expected = ["accuracy", "macro", "matthews", "correlation", "roc", "auc", "loss", "error"]
    expected += ["fine-tuned", "(linear_probe)", "regression", "linear", "head", "precision"]
    expected += ["0.125", "0.750", "1,234", "[/b]", "bracket", "several", "0.1", "0.9", "GiB"]
    expected += ["[0.062,", "0.250]", "pretrained", "bootstrap"]
    assert not set(expected) - words
    rows = text.replace("│", "").replace("\n", "").replace(" ", "")
    assert FOLDER in rows


def test_wide_terminals_have_one_table_each():
    assert printed(200).count("fine-tuned") == 2
    assert printed(60).count("fine-tuned") > 1


def test_what_is_printed_is_no_markup(capsys, monkeypatch):
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        make_console().print("reading ['a'] [/b] :smile:")
        assert capsys.readouterr().out == "reading ['a'] [/b] :smile:\n"


@pytest.mark.parametrize("width", [120, 80, 60])
def test_the_live_line_is_not_cut(tmp_path, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    clock = Clock(train=10.0, examples=123_456)
    with RunReport(RunFolder(tmp_path), 12_345, console) as report:
        report.progress(1234, {"train/loss": 0.1234, "train/learning_rate": 1e-3}, clock)
        report._live.refresh()
    text = console.file.getvalue()
    assert "…" not in text
    for words in ("1234/12345", "0.1234", "1.00e-03", "12345.6"):
        assert words in text
