"""Fifty steps of each objective are those that were kept as text.

They change only on purpose: `python -m pytest tests/trajectories --keep="why they change"` writes
them again, with the reason in them. The two tolerances are as in TRL's tests/invariant: one for the
largest difference, and a smaller one for the mean, which shows a drift to one side.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from matrix import ROWS
from steps import STEPS, settings_of, track_of

from ftjax.objectives import OBJECTIVES

LARGEST, MEAN = 5e-4, 5e-5
"""Of loss and gradient norm, relative to what is kept where that is above 1."""
COMMAND = 'python -m pytest tests/trajectories --keep="why" -k {}'


def file_of(objective):
    return Path(__file__).parent / f"{objective}.json"


def keep(objective, track, reason):
    packages = ("jax", "flax", "optax", "numpy")
    kept = {
        "objective": objective,
        "family": ROWS[objective].families[0],
        "reason": reason,
        "env": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "config": settings_of(track),
    }
    steps = ",\n".join(f"    [{loss:.7f}, {norm:.7f}]" for loss, norm in track.steps)
    head = json.dumps(kept, indent=2).removesuffix("\n}")
    file_of(objective).write_text(f'{head},\n  "steps": [\n{steps}\n  ]\n}}\n')


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_kept(objective, config_for, request):
    assert objective in ROWS, "give it a row in tests/properties/matrix.py"
    track = track_of(objective, config_for)
    assert track.steps.shape == (STEPS, 2) and np.isfinite(track.steps).all()
    if reason := request.config.getoption("--keep", None):
        assert len(reason.split()) > 2, "say in a few words why the trajectories change"
        keep(objective, track, reason)
    command = COMMAND.format(objective)
    assert file_of(objective).exists(), f"no trajectory is kept; keep one: {command}"
    kept = json.loads(file_of(objective).read_text())
    # A field that has come since is at a default that changes nothing, or the steps tell.
    settings = json.loads(json.dumps(settings_of(track)))
    now = {name: settings.get(name) for name in kept["config"]}
    assert now == kept["config"], f"another run than was kept; if on purpose: {command}"
    expected = np.asarray(kept["steps"])
    differences = (track.steps - expected) / np.maximum(1.0, np.abs(expected))
    largest, mean = np.abs(differences).max(0), np.abs(differences.mean(0))
    assert (largest <= LARGEST).all(), f"largest differences {largest}; if on purpose: {command}"
    assert (mean <= MEAN).all(), f"mean differences {mean}; if on purpose: {command}"


def test_it_learns():
    """The last steps' losses are below the first ones, or nothing would be seen to go wrong."""
    for objective in ROWS:
        losses = np.asarray(json.loads(file_of(objective).read_text())["steps"])[:, 0]
        assert losses[-5:].mean() < 0.95 * losses[:5].mean(), objective
