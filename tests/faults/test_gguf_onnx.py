"""Files with bytes changed at random: the same network, or one sentence of ftjax's own, soon."""

import random

import pytest
from gguf_files import sentencepiece_keys, write_llama
from mutate import mutate_bytes, sentence_or_result
from safetensors.numpy import load_file

from ftjax.pretrained.gguf import import_gguf
from ftjax.pretrained.load import load_model
from ftjax.pretrained.onnx import import_onnx


def import_and_load(importer, path, folder, network):
    importer(path, folder)
    return load_model(folder, network)


@pytest.mark.parametrize("tokenizer", ["byte-level", "sentencepiece"])
def test_gguf(tmp_path, tokenizer):
    path = tmp_path / "model.gguf"
    changed = sentencepiece_keys(bytes_too=False) if tokenizer == "sentencepiece" else {}
    write_llama(path, changed=changed)
    whole = path.read_bytes()
    header = whole.index(b"blk.1.ffn_down.weight") + 64
    import_gguf(path, tmp_path / "whole")
    assert load_file(tmp_path / "whole/model.safetensors")
    for seed in range(40):
        path.write_bytes(mutate_bytes(whole, random.Random(seed), header=header))
        arguments = (import_gguf, path, tmp_path / f"{seed}", "causal_lm")
        sentence_or_result(import_and_load, *arguments)


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    from test_onnx import Exported

    path = tmp_path / "model.onnx"
    onnx.save(Exported(norm_is_one_node=True).model(), path)
    whole = path.read_bytes()
    for seed in range(40):
        path.write_bytes(mutate_bytes(whole, random.Random(seed)))
        arguments = (import_onnx, path, tmp_path / f"{seed}", "backbone")
        sentence_or_result(import_and_load, *arguments)
