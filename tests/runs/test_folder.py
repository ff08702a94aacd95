"""A run folder: whose it is, who is in it, and what is noticed when it was damaged."""

import json
import math
import subprocess
import sys

import pytest

from ftjax.runs.folder import RunFolder
from ftjax.runs.manifest import note_seconds, start_manifest
from ftjax.runs.result import Cost, Result

CONFIG = {"seed": 0, "name": "x", "data.buckets": (8, 16)}
COST = Cost(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, 1, 1)
RESULT = Result("x", "base", 0, "full", {"test/loss": 0.5}, 3, 2, 9, COST)


def begun(path, config=CONFIG):
    """A folder whose run has begun."""
    folder = RunFolder(path)
    with folder.claimed(config):
        start_manifest(path, config=config, weights={}, datasets={}, devices=[])
    return folder


def test_a_start_that_never_ran_is_taken_over(tmp_path):
    with RunFolder(tmp_path).claimed(CONFIG):
        pass
    with RunFolder(tmp_path).claimed(CONFIG | {"seed": 1}):
        pass
    assert RunFolder(tmp_path).config()["seed"] == 1


def test_a_run_that_began_keeps_its_config(tmp_path):
    begun(tmp_path)
    with (
        pytest.raises(ValueError, match=r"config\.seed: 0 there, 1 now"),
        RunFolder(tmp_path).claimed(CONFIG | {"seed": 1}),
    ):
        pass


def test_a_second_process_is_told_and_a_dead_one_holds_nothing(tmp_path):
    script = (
        "import sys\nfrom ftjax.runs.folder import RunFolder\n"
        f"with RunFolder({str(tmp_path)!r}).claimed({CONFIG!r}):\n"
        "    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    with (
        pytest.raises(ValueError, match="Another process is at work in"),
        RunFolder(tmp_path).claimed(CONFIG),
    ):
        pass
    process.kill()
    process.communicate()
    with RunFolder(tmp_path).claimed(CONFIG):
        pass


def test_a_result_comes_back(tmp_path):
    folder = begun(tmp_path)
    folder.remember("result", RESULT.to_json())
    assert folder.result() == RESULT
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert RunFolder(moved).result() == RESULT


@pytest.mark.parametrize("name", ["config", "result", "before", "manifest"])
def test_one_changed_digit_is_noticed(tmp_path, name):
    folder = begun(tmp_path)
    folder.remember("result", RESULT.to_json())
    folder.remember("before", {"retention": [0.25, 1.0]})
    file = tmp_path / f"{name}.json"
    text = file.read_text()
    digit = next(i for i, letter in enumerate(text) if letter in "012345678")
    file.write_text(text[:digit] + str(int(text[digit]) + 1) + text[digit + 1 :])
    readers = {
        "config": folder.config,
        "manifest": lambda: note_seconds(tmp_path, 1.0),
        "result": folder.result,
        "before": lambda: folder.recall("before"),
    }
    with pytest.raises(ValueError, match=rf"{name}\.json is damaged or was edited"):
        readers[name]()


def test_a_number_that_is_none_is_not_written(tmp_path):
    folder = begun(tmp_path)
    with pytest.raises(ValueError, match="a number that is none"):
        folder.remember("result", {"loss": math.nan})
    assert folder.result() is None


def test_metrics_of_later_steps_and_half_a_line_are_dropped(tmp_path):
    folder = begun(tmp_path)
    for step in (1, 2, 3):
        folder.log(step, {"train/loss": 0.1 * step})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "tr')
    folder.forget_after(3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    folder.forget_after(1)
    assert [line["step"] for line in folder.metrics()] == [1]


def test_seconds_of_all_sessions_count(tmp_path):
    begun(tmp_path)
    note_seconds(tmp_path, 10.0)
    begun(tmp_path)
    assert note_seconds(tmp_path, 4.5) == 14.5
    sessions = json.loads((tmp_path / "manifest.json").read_text())["sessions"]
    assert [session["seconds"] for session in sessions] == [10.0, 4.5]
