"""A damaged file of a run: the run ends as it would have, or one sentence names the file."""

import io
import itertools
import json
import os
import shutil
import signal
import sys
import traceback

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from run_folders import Damage, damages
from tiny import TINY

from ftjax.config import base_config, override
from ftjax.data.examples import TextExamples
from ftjax.interrupt import Stopped
from ftjax.runs.folder import RunFolder
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run

SEED = 5
SENTENCES = (ValueError, OSError, RuntimeError)


@pytest.fixture(scope="module", autouse=True)
def kept_programs(tmp_path_factory):
    """Each trial compiles the same."""
    before = jax.config.jax_compilation_cache_dir
    settings = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    settings["jax_compilation_cache_dir"] = str(tmp_path_factory.mktemp("xla"))
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(scope="module")
def config(tiny_bert, tiny_texts):
    """With a head first, features, an average, retention: all the files that a run can have."""
    return override(
        base_config(),
        {
            **TINY,
            "model.reference": str(tiny_bert),
            "data.source": str(tiny_texts),
            "data.buckets": (16,),
            "evaluation.baselines": False,
            "retention.source": str(tiny_texts),
            "retention.max_length": 16,
            "training.epochs": 2,
            "training.checkpoint_every": 2,
            "training.log_every": 1,
            "tuning.head_epochs": 1,
            "averaging.method": "ema",
            "averaging.decay": 0.9,
        },
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, config):
    """A run that was told to stop at step 9 of 12."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    plain, batches = TextExamples.batch, itertools.count(1)

    def batch(self, indices, *, rows, length):
        if sys._getframe(1).f_code.co_filename.endswith("fit.py") and next(batches) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, indices, rows=rows, length=length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextExamples, "batch", batch)
        with pytest.raises(Stopped, match="at step 9 of 12"):
            run(config, folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config, stopped):
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(stopped, folder)
    run(config, folder)
    return folder


def what_it_found(folder):
    """All of a run's result but what it cost."""
    result = RunFolder(folder).result().to_json() | {"cost": None}
    network = load_finished_run(folder)
    parameters = nnx.to_flat_state(nnx.state(network.network, nnx.Param))
    return (
        json.dumps(result),
        network.objective.facts,
        {path: np.asarray(value[...]).tobytes() for path, value in parameters},
    )


def continued(config, folder, expected):
    """What a run ends with; the lines of metrics.jsonl may be lost, but not without a word."""
    console, lines = Console(file=io.StringIO(), width=500), folder / "metrics.jsonl"
    run(config, folder, console)
    same = lines.read_bytes() == (expected / "metrics.jsonl").read_bytes()
    assert same or "metrics.jsonl" in console.file.getvalue()
    return what_it_found(folder)


def used(config, folder, expected):
    """What a finished run is read as."""
    result, found = run(config, folder), what_it_found(folder)
    assert json.dumps(result.to_json() | {"cost": None}) == found[0]
    return found


def outcome(trial, config, folder, damage: Damage, expected) -> str:
    """Damages a folder and says what comes of it.

    Args:
        trial: `continued` or `used`.
        config: of the run.
        folder: of the run.
        damage: to it.
        expected: a folder of the same run that was never stopped or damaged.

    Returns:
        "equal" or "refused".
    """
    damage.do(folder)
    try:
        found = trial(config, folder, expected)
    except SENTENCES as error:
        frame = traceback.extract_tb(error.__traceback__)[-1].filename
        assert "/ftjax/" in frame and "site-packages" not in frame, traceback.format_exc()
        named = [part for part in (folder.name, damage.file.split("/")[0]) if part in str(error)]
        assert named, error
        return "refused"
    assert found == what_it_found(expected), damage
    return "equal"


@pytest.mark.parametrize(("trial", "trials"), [(continued, 20), (used, 40)])
def test_damaged_files(tmp_path, capfd, config, stopped, finished, trial, trials):
    base, found = stopped if trial is continued else finished, []
    for number, damage in enumerate(itertools.islice(damages(base, SEED), trials)):
        folder = tmp_path / f"run-{number}"
        shutil.copytree(base, folder)
        found.append(outcome(trial, config, folder, damage, finished))
        shutil.rmtree(folder)
    assert {"equal", "refused"} == set(found)
    assert "Traceback" not in capfd.readouterr().err


def test_a_lost_best_is_told_before_the_time_is_spent(tmp_path, config, stopped):
    shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "best")
    with pytest.raises(ValueError, match=r"best parameters so far are lost: .*it is not there"):
        run(config, tmp_path / "run")


def test_a_lost_config_does_not_let_another_run_go_on(tmp_path, config, stopped):
    shutil.copytree(stopped, tmp_path / "run")
    for name in ("config.json", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*manifest\.json\. Restore"):
        run(override(config, {"seed": 1}), tmp_path / "run")
