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

import ftjax.tasks.text_classification as task_module
import ftjax.training.checkpoint as checkpoint_module
from ftjax.config import base_config, override
from ftjax.training.run import run

folder, values, where = sys.argv[1:]
config = override(
    base_config(),
    {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(values).items()},
)
kind, *details = where.split()
count = 0


def at_batch(original):
    def make(self, split, batch_size, plan):
        global count
        if split == "train" and batch_size == config.data.batch_size:
            count += 1
            if count == int(details[0]):
                number = signal.SIGKILL if kind == "step" else signal.Signals[details[1]]
                os.kill(os.getpid(), number)
        return original(self, split, batch_size, plan)

    return make


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
    make = task_module.TextClassification.make
    task_module.TextClassification.make = at_batch(make)
elif kind == "save":
    checkpoint_module._save = at_save(checkpoint_module._save)

result = run(config, folder, Console(width=200, soft_wrap=True))
print("finished" if result else "stopped", flush=True)
