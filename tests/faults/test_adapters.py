"""Adapter folders changed at random: an adapter that can be, or one sentence of ftjax's own."""

import json
import random
import shutil

import numpy as np
import pytest
from mutate import mutate_bytes, mutate_json, sentence_or_result
from safetensors.numpy import load_file, save_file

from ftjax.config import base_config
from ftjax.models.heads import LanguageModel
from ftjax.pretrained.adapter import load_adapter, save_adapter
from ftjax.pretrained.adapter_file import CONFIG, WEIGHTS
from ftjax.pretrained.load import load_model
from ftjax.tuning.tune import tune

METHODS = ("lora", "dora", "ia3", "vera", "prompt")


def plain(folder):
    return LanguageModel(load_model(folder, "causal_lm"))


@pytest.fixture(scope="module", params=METHODS)
def saved(request, tmp_path_factory):
    """(base folder, adapter folder) of a method."""
    base = request.getfixturevalue("tiny_llama")
    settings = base_config().tuning
    settings.method = request.param
    rebuild, trainable, frozen = tune(plain(base), settings, 0)
    noise = np.random.default_rng(0)
    trainable = {path: v + 0.1 * noise.normal(size=v.shape) for path, v in trainable.items()}
    folder = tmp_path_factory.mktemp(request.param) / "adapter"
    save_adapter(rebuild(trainable, frozen), "causal_lm", base, folder)
    # What is compiled here takes no time from what follows.
    loaded(base, folder)
    return base, folder


def loaded(base, folder):
    """The outputs of an adapter on the base; they must be numbers."""
    network = plain(base)
    load_adapter(network, base, folder)
    logits = np.asarray(network.backbone(np.arange(4, 12)[None]).logits)
    assert np.isfinite(logits).all()
    return logits


def test_settings(saved, tmp_path):
    base, adapter = saved
    fields = json.loads((adapter / CONFIG).read_text())
    refused = 0
    for seed in range(25):
        folder = shutil.copytree(adapter, tmp_path / f"{seed}")
        changed = mutate_json(fields, random.Random(seed))
        (folder / CONFIG).write_text(json.dumps(changed))
        refused += sentence_or_result(loaded, base, folder)[1] is not None
    assert refused > 5


def test_bytes(saved, tmp_path):
    base, adapter = saved
    for name in (CONFIG, WEIGHTS, "ftjax_adapter.json"):
        whole = (adapter / name).read_bytes()
        for seed in range(8):
            folder = shutil.copytree(adapter, tmp_path / f"{name}-{seed}")
            header = min(len(whole), 400)
            (folder / name).write_bytes(mutate_bytes(whole, random.Random(seed), header=header))
            sentence_or_result(loaded, base, folder)


def test_tensors(saved, tmp_path):
    base, adapter = saved
    tensors = load_file(adapter / WEIGHTS)
    for seed in range(12):
        rng = random.Random(seed)
        folder = shutil.copytree(adapter, tmp_path / f"{seed}")
        changed = dict(tensors)
        name = rng.choice(sorted(tensors))
        value = changed.pop(name)
        kind = rng.choice(["out", "renamed", "nan", "whole", "turned", "short", "empty", "scalar"])
        new = {
            "nan": np.where(value == value.max(), np.nan, value),
            "whole": value.astype(np.int32),
            "turned": np.ascontiguousarray(value.reshape((*value.shape[::-1], 1))),
            "short": value[1:].copy(),
            "empty": value[:0].copy(),
            "scalar": np.float32(1.0),
            "renamed": value,
        }
        if kind != "out":
            changed[f"{name}_" if kind == "renamed" else name] = np.asarray(new[kind])
        save_file(changed, folder / WEIGHTS)
        _, sentence = sentence_or_result(loaded, base, folder)
        assert sentence, (kind, name)
        assert str(folder) in sentence
