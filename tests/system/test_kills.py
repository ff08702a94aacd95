"""Runs that are killed at any instant, and continued, end with the bits of one that never was."""

import random

import pytest
from driver import NEVER, digest, trial

from ftjax.config import base_config, override

CONFIGS = {
    "classifier": {
        "data.buckets": (8, 16),
        "tuning.head_epochs": 1,
        "tuning.unfreeze_epochs": 1,
        "averaging.method": "ema",
        "penalties.mixout": 0.2,
    },
    "language model": {"objective.name": "causal_lm", "data.max_length": 32},
    "fsdp": {"training.mesh.fsdp": 2, "data.buckets": (16,), "averaging.method": "ema"},
    "pmap": {"training.parallel": "pmap", "data.buckets": (16,)},
}
# (config, moment, from, to): the count is drawn between the two; of "time", in percent of what the
# run takes that is never killed.
KILLS = [
    ("classifier", "batch", 2, 6),
    ("classifier", "time", 20, 90),
    ("classifier", "saving", 8, 10),
    ("language model", "time", 20, 90),
    ("language model", "batch", 3, 8),
    ("fsdp", "saving", 3, 5),
    ("pmap", "batch", 3, 12),
]


@pytest.fixture(scope="module")
def config_of(tiny_bert, tiny_llama, tiny_texts):
    """Name -> its config."""

    def make(name):
        files = {"data.source": str(tiny_texts), "model.reference": str(tiny_bert)}
        if name == "language model":
            files["model.reference"] = str(tiny_llama)
        shared = {
            "name": "killed",
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "retention.enabled": False,
            "optimizer.learning_rate": 1e-2,
            "training.epochs": 2,
            "training.checkpoint_every": 2,
            "training.log_every": 1,
        }
        if name != "language model":
            shared["evaluation.baselines"] = False
        return override(base_config(), shared | files | CONFIGS[name])

    return make


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory, config_of, programs):
    """Name -> the digest of its run, how many devices it had, and how many milliseconds it took."""
    found = {}

    def run(name):
        if name not in found:
            devices = 4 if name in ("fsdp", "pmap") else 1
            folder = tmp_path_factory.mktemp("never") / "run"
            done = trial(folder, config_of(name), NEVER, devices=devices, programs=programs)
            assert done.code == 0, done.output
            found[name] = digest(folder), devices, 1000 * done.seconds
        return found[name]

    return run


@pytest.mark.parametrize("number", range(len(KILLS)), ids=lambda n: "-".join(KILLS[n][:2]))
def test_killed_and_continued(tmp_path, config_of, never_killed, programs, number):
    name, moment, low, high = KILLS[number]
    count = random.Random(number).randint(low, high)
    expected, devices, milliseconds = never_killed(name)
    if moment == "time":
        count = count * milliseconds // 100
    folder = tmp_path / "run"
    done = trial(
        folder, config_of(name), ("SIGKILL", moment, count), devices=devices, programs=programs
    )
    while moment == "time" and done.code == 0:
        # Programs that are compiled already are quicker: it was done before that instant.
        folder, count = tmp_path / f"before-{count}", 0.6 * count
        killed = ("SIGKILL", moment, count)
        done = trial(folder, config_of(name), killed, devices=devices, programs=programs)
    assert done.code == -9, done.output
    assert not (folder / "result.json").exists()
    done = trial(folder, config_of(name), NEVER, devices=devices, programs=programs)
    assert done.code == 0, done.output
    assert moment != "saving" or "Continuing from step" in done.output, done.output
    assert digest(folder) == expected
