"""Signals at any moment: one sentence, the exit code that shells have, the same bits afterwards."""

import os
import signal
import subprocess
import sys
import time

import pytest
from driver import NEVER, TRAIN, digest, trial

from ftjax.config import base_config, override

MOMENTS = [
    ("SIGINT", "preparing data", 1),
    ("SIGTERM", "scoring", 1),
    ("SIGINT", "compiling", 1),
    ("SIGTERM", "batch", 1),
    ("SIGINT", "batch", 5),
    ("SIGINT", "saving", 2),
    ("SIGTERM", "saving", 12),
    ("SIGINT", "end", 1),
]


@pytest.fixture(scope="module")
def config(tiny_bert, tiny_texts):
    return override(
        base_config(),
        {
            "name": "tiny",
            "model.reference": str(tiny_bert),
            "data.source": str(tiny_texts),
            "data.buckets": (16,),
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "training.epochs": 2,
            "training.log_every": 1,
            "training.checkpoint_every": 1,
            "retention.source": str(tiny_texts),
            "retention.max_length": 16,
        },
    )


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, config, programs):
    folder = tmp_path_factory.mktemp("never") / "run"
    done = trial(folder, config, NEVER, programs=programs)
    assert done.code == 0, done.output
    return digest(folder)


@pytest.mark.parametrize("where", MOMENTS, ids=lambda where: "-".join(map(str, where)))
def test_a_signal_ends_a_run_with_a_sentence(tmp_path, config, never_stopped, programs, where):
    folder = tmp_path / "run"
    done = trial(folder, config, where, programs=programs)
    assert done.code == 128 + signal.Signals[where[0]], done.output
    assert done.output.count(f"Stopped by {where[0]}") == 1, done.output
    assert "the same command continues" in done.output.lower()
    assert "Traceback" not in done.output
    done = trial(folder, config, NEVER, programs=programs)
    assert done.code == 0, done.output
    assert digest(folder) == never_stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_imported(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, TRAIN, "--config=nowhere.py"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(0.7)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert f"Stopped by {number.name}" in errors
    assert "Traceback" not in errors
