"""Signals at any moment: one sentence, the exit code that shells have, and no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[2] / "scripts" / "train.py"
EXPERIMENT = """
from ftjax.config import base_config

def get_config():
    config = base_config()
    config.name = "tiny"
    config.model.reference = {bert!r}
    config.data.source = {texts!r}
    config.data.buckets = (8, 16)
    config.data.batch_size = 8
    config.training.epochs = 100000
    config.retention.source = {texts!r}
    config.retention.max_length = 16
    return config
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 5.0, 12.0])
def test_a_signal_ends_a_run_with_a_sentence(tmp_path, tiny_bert, tiny_texts, number, seconds):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(EXPERIMENT.format(bert=str(tiny_bert), texts=str(tiny_texts)))
    process = subprocess.Popen(
        [sys.executable, TRAIN, f"--config={experiment}", f"--workdir={tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert f"Stopped by {number.name}" in errors
    assert "Traceback" not in errors
