"""Every anchor is compared with all rows of the batch, on however many devices they lie."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_splits

DEVICES = (1, 2, 8)
SCRIPT = """
import json, sys
import jax, numpy as np
from ftjax.config import base_config, override
from ftjax.training.build import build
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.parallel import MeshParallel
from ftjax.training.step import make_train_step, new_state

config = override(base_config("embedding"), json.loads(sys.argv[1]))
parts = build(config)
start = jax.device_get(parts.trainable)
frozen = jax.device_get(parts.frozen)
schedule = make_schedule(config.optimizer, 1)
optimizer = make_optimizer(config.optimizer, schedule, start)
examples = parts.objective.examples["train"]
batch = examples.batch(np.arange(13), rows=16, length=16)
order = np.random.default_rng(0).permutation(16)
network = parts.rebuild(parts.trainable, parts.frozen)
found = {"vectors": np.asarray(network(batch)).tolist(), "ids": batch["text_ids"].tolist()}
for count in map(int, sys.argv[2:]):
    parallel = MeshParallel(jax.devices()[:count])
    # In parts only where there are most.
    sizes = (None, 8) if count == 8 else (None,)
    hows = [("as it is", np.arange(16), None), *(("permuted", order, size) for size in sizes)]
    for name, rows, size in hows:
        step = make_train_step(
            parts.rebuild, parts.objective.loss, optimizer, schedule, rows_at_once=size
        )
        state = parallel.place(new_state(0, start, optimizer))
        placed = parallel.place_batch({name: array[rows] for name, array in batch.items()})
        _, metrics = parallel.map_train(step)(state, parallel.place(frozen), placed)
        metrics = parallel.fetch(metrics)
        found[f"{count} {name} {size}"] = [
            float(metrics[name]) for name in ("loss", "gradient_norm")
        ]
print(json.dumps(found))
"""


def test_negatives_are_those_of_all_devices(tiny_bert, tmp_path):
    """The loss of one device in numpy, for any number of them and any order of rows."""

    def pair(index):
        return {"anchor": f"word{index % 50}", "positive": f"word{index % 50} word{index % 7}"}

    source = write_splits(tmp_path, pair, train=16, validation=10, test=11)
    settings = {
        "name": "tiny",
        "model.reference": str(tiny_bert),
        "model.dropout": 0.0,
        "data.source": str(source),
        "data.max_length": 8,
        "data.batch_size": 16,
        "retention.enabled": False,
    }
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(settings), *map(str, DEVICES)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])

    vectors = np.asarray(found.pop("vectors"), np.float64)[:13]
    assert len(np.unique(np.asarray(found.pop("ids"))[:13])) == 26
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    scores = 20 * vectors[:, 0] @ vectors[:, 1].T
    expected = np.mean(np.log(np.exp(scores).sum(1)) - np.diag(scores))
    # Half of the rows as negatives are another loss.
    half = np.mean(np.log(np.exp(scores[:7, :7]).sum(1)) - np.diag(scores)[:7])
    assert abs(half - expected) > 0.1
    assert len(found) == 2 * len(DEVICES) + 1
    norm = found["1 as it is None"][1]
    for how, measured in found.items():
        assert measured == pytest.approx([expected, norm], rel=2e-6), how
