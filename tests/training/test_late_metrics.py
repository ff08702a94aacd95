"""Metrics of steps that the device still works on."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from ftjax.training.loop import Clock, DivergedError, _LateMetrics

WAIT = 0.02


class Told:
    """What a report is told: the step, and the clock as it stands then."""

    def __init__(self):
        self.steps, self.logged = [], []

    def log(self, step, metrics):
        self.logged.append(step)

    def progress(self, step, metrics, clock):
        self.steps.append((step, clock.examples, clock.train))


def late(loss=1.0):
    def fetch(found):
        time.sleep(WAIT)
        return found

    told, plan = Told(), SimpleNamespace(log_every=2, total_steps=5)
    metrics = _LateMetrics(SimpleNamespace(fetch=fetch), plan, told, Clock())
    for step in range(1, 6):
        ids = np.array([3, 4, -1])
        metrics.add(step, ids, {"loss": loss if step == 4 else 0.5})
    return metrics, told


def test_speed_and_time_left_know_what_was_waited_for():
    metrics, told = late()
    metrics.read(saved=0, keep=2)
    assert [step for step, _, _ in told.steps] == [1, 2, 3]
    metrics.read(saved=0)
    for step, examples, seconds in told.steps:
        assert examples == 2 * step
        assert seconds >= WAIT * step
    assert told.logged == [2, 4, 5]


def test_a_number_that_is_none_is_not_reported():
    metrics, told = late(loss=float("nan"))
    with pytest.raises(DivergedError, match=r"step 4; .*records: 4, 5"):
        metrics.read(saved=3)
    assert told.logged == [2]
