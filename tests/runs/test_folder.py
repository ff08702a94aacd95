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
    folder, file = begun(tmp_path), tmp_path / "metrics.jsonl"
    logged, contents = [], []
    for step in (1, 2, 3):
        folder.log(step, {"train/loss": 0.1 * step})
        logged.append(folder.logged())
        contents.append(file.read_bytes())
    with open(file, "a") as lines:
        lines.write('{"step": 4, "tr')
    assert folder.forget_after(3, logged[2])
    assert file.read_bytes() == contents[2]
    assert folder.forget_after(1, logged[0])
    assert file.read_bytes() == contents[0]
    assert folder.forget_after(0, 0)
    assert file.read_bytes() == b""


@pytest.mark.parametrize("damage", ["digit", "line", "removed", "type"])
def test_metrics_that_were_changed_are_set_aside(tmp_path, damage):
    folder, file = begun(tmp_path), tmp_path / "metrics.jsonl"
    for step in (1, 2):
        folder.log(step, {"train/loss": 0.5})
    logged, text = folder.logged(), file.read_text()
    _, second = text.splitlines(keepends=True)
    changed = {"digit": text.replace("0.5", "0.6", 1), "line": second, "type": f"3\n{second}"}
    file.unlink() if damage == "removed" else file.write_text(changed[damage])
    assert not folder.forget_after(2, logged)
    assert file.read_bytes() == b""
    aside = tmp_path / "metrics.damaged.jsonl"
    assert aside.exists() == (damage != "removed")
    assert damage == "removed" or aside.read_text() == changed[damage]


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_what_a_run_that_began_has_lost_is_told(tmp_path, name):
    begun(tmp_path)
    RunFolder(tmp_path).checkpoints.mkdir()
    (tmp_path / name).unlink()
    other = CONFIG | {"seed": 1}
    told = rf"There is no file .*{name}\. Restore it from a copy, or delete the run folder"
    with pytest.raises(FileNotFoundError, match=told), RunFolder(tmp_path).claimed(other):
        pass
    assert not (tmp_path / name).exists()


def test_seconds_of_all_sessions_count(tmp_path):
    begun(tmp_path)
    note_seconds(tmp_path, 10.0)
    begun(tmp_path)
    assert note_seconds(tmp_path, 4.5) == 14.5
    sessions = json.loads((tmp_path / "manifest.json").read_text())["sessions"]
    assert [session["seconds"] for session in sessions] == [10.0, 4.5]
