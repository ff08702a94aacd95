"""Runs one training run in a process of its own, which may be told to kill itself.

python driver.py <run folder> <config as JSON> <where to die>

Where: "never"; "step N": at the start of batch N; "save N": SIGKILL while the N-th checkpoint is
being written in the background; "signal N NAME": sends itself a signal at batch N.
"""

import json
import os
import signal
import sys

from rich.console import Console

import ftjax.training.checkpoint as checkpoint_module
from ftjax.config import config_of
from ftjax.data.examples import FeatureExamples, TextExamples
from ftjax.interrupt import Stopped
from ftjax.training.run import run

folder, values, where = sys.argv[1:]
config = config_of(json.loads(values))
kind, *details = where.split()
count = 0


def at_batch(original):
    def batch(self, indices, *, rows, length):
        global count
        # Training asks from `fit`, everything else from elsewhere.
        if sys._getframe(1).f_code.co_filename.endswith("fit.py"):
            count += 1
            if count == int(details[0]):
                number = signal.SIGKILL if kind == "step" else signal.Signals[details[1]]
                os.kill(os.getpid(), number)
        return original(self, indices, rows=rows, length=length)

    return batch


def at_save(original):
    def save(manager, step, state, progress):
        global count
        original(manager, step, state, progress)
        count += 1
        if count == int(details[0]):
            partial = [p for p in os.listdir(manager.directory) if "tmp" in p]
            print("half-written:", partial, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    return save


if kind in ("step", "signal"):
    for examples in (TextExamples, FeatureExamples):
        examples.batch = at_batch(examples.batch)
elif kind == "save":
    checkpoint_module._save = at_save(checkpoint_module._save)

try:
    run(config, folder, Console(width=200, soft_wrap=True))
    print("finished", flush=True)
except Stopped as stopped:
    print(stopped, flush=True)
