"""What a run writes for TensorBoard, read back by the format's own description."""

import json
import struct

import pytest
from tiny import quiet

from ftjax.config import override
from ftjax.training.run import run

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def scalars(folder):
    """(name, step) -> value of all event files of a folder."""
    found = {}
    for file in folder.glob("events.out.tfevents.*"):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            at += 16 + length
    return found


def test_it_is_what_stands_in_metrics_jsonl(tmp_path, tiny_config):
    settings = {"training.tensorboard": True, "training.max_steps": 3, "training.log_every": 1}
    settings |= {"evaluation.baselines": False, "retention.enabled": False}
    run(override(tiny_config, settings), tmp_path / "run", quiet())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    expected = {
        (name, line["step"]): pytest.approx(value, rel=1e-6)
        for line in map(json.loads, lines)
        for name, value in line.items()
        if name != "step"
    }
    assert scalars(tmp_path / "run" / "tensorboard") == expected
    assert {step for name, step in expected if name == "train/loss"} == {1, 2, 3}


def test_without_the_package_nothing_begins(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ftjax\[tensorboard\]'"):
        run(override(tiny_config, {"training.tensorboard": True}), tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()
