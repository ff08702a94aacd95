"""Checkpoint folders changed by chance: the same network, or one sentence of ftjax's own, soon."""

import json
import random
import resource
import shutil

import numpy as np
import pytest
from flax import nnx
from mutate import mutate_bytes, mutate_json, sentence_or_result
from safetensors.numpy import load_file, save_file

from ftjax.data.text import tokenize
from ftjax.data.tokenizer import load_tokenizer
from ftjax.pretrained.load import dotted, load_model

TRIALS = 30
MOST_BYTES = 2**30
RECORDS = [{"text": "word1 word2 unknown"}, {"text": "word3"}]
# Fields that a file may have, so that they are changed, too.
BERT = {"layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "hidden_act": "gelu"}
LLAMA = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.fixture(autouse=True)
def bounded_memory():
    """No file makes this process large."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MOST_BYTES


def parameters(folder, network):
    state = nnx.state(load_model(folder, network))
    return {dotted(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def assert_sentence_or_the_same(folder, network, expected):
    found, sentence = sentence_or_result(parameters, folder, network)
    if found is not None:
        assert found.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value)
    return sentence


@pytest.mark.parametrize("family", ["bert", "llama", "llava"])
def test_config(tmp_path, tiny_bert, tiny_llama, family):
    source, network = (tiny_bert, "backbone") if family == "bert" else (tiny_llama, "causal_lm")
    folder = shutil.copytree(source, tmp_path / "copy")
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | (BERT if family == "bert" else LLAMA)
    if family == "llava":
        tensors = load_file(folder / "model.safetensors")
        inside = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
        save_file(inside, folder / "model.safetensors")
        fields = {"model_type": "llava", "text_config": fields}
    path.write_text(json.dumps(fields))
    expected = parameters(folder, network)
    sentences = set()
    for seed in range(TRIALS):
        path.write_text(json.dumps(mutate_json(fields, random.Random(seed))))
        sentences.add(assert_sentence_or_the_same(folder, network, expected))
    # Both happened, and not one sentence for all.
    assert None in sentences
    assert len(sentences) > TRIALS // 4


@pytest.mark.parametrize("kind", ["json", "bytes"])
def test_index(tmp_path, tiny_bert, kind):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    expected = parameters(folder, "backbone")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"part-{number}.safetensors": sorted(tensors)[number::2] for number in range(2)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    path = folder / "model.safetensors.index.json"
    for seed in range(TRIALS):
        rng = random.Random(seed)
        if kind == "json":
            path.write_text(json.dumps(mutate_json(index, rng)))
        else:
            path.write_bytes(mutate_bytes(json.dumps(index).encode(), rng))
        assert_sentence_or_the_same(folder, "backbone", expected)


ELSEWHERE = ("", ".", "..", "../a", "/etc/passwd", "a\0b", "a" * 4000, "a\nb", 3)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_shards_elsewhere(tmp_path, tiny_bert, name):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    content = {"weight_map": {"pooler.dense.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    _, sentence = sentence_or_result(load_model, folder)
    assert "which is no file beside the index" in sentence


def test_a_shard_that_is_a_loop(tmp_path, tiny_bert):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    (folder / "loop").symlink_to("loop")
    content = {"weight_map": {"pooler.dense.bias": "loop"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    _, sentence = sentence_or_result(load_model, folder)
    assert "names the shard loop, which is missing" in sentence


def test_header_of_safetensors(tmp_path, tiny_bert):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    expected = parameters(folder, "backbone")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    for seed in range(TRIALS):
        rng = random.Random(seed)
        if seed % 2:
            path.write_bytes(mutate_bytes(whole, rng, header=8 + length))
        else:
            changed = json.dumps(mutate_json(header, rng)).encode()
            path.write_bytes(len(changed).to_bytes(8, "little") + changed + data)
        assert_sentence_or_the_same(folder, "backbone", expected)


@pytest.mark.parametrize("kind", ["json", "bytes", "settings"])
def test_tokenizer(tmp_path, tiny_bert, kind):
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    path = folder / ("tokenizer_config.json" if kind == "settings" else "tokenizer.json")
    whole = path.read_bytes()
    steps = [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]
    content = json.loads(whole)
    if kind != "settings":
        content["normalizer"] = {"type": "Sequence", "normalizers": steps}

    def read():
        return tokenize(RECORDS, load_tokenizer(folder), max_length=16)

    # Its imports take seconds.
    read()
    for seed in range(TRIALS):
        rng = random.Random(seed)
        if kind == "bytes":
            path.write_bytes(mutate_bytes(whole, rng))
        else:
            path.write_text(json.dumps(mutate_json(content, rng)))
        sentence_or_result(read)
