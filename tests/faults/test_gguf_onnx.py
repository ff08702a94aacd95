"""Files with bytes changed at random: the same network, or one sentence of ftjax's own, soon."""

import random
import time
import traceback

import pytest
from gguf_files import sentencepiece_keys, write_llama
from safetensors.numpy import load_file

from ftjax.pretrained.gguf import import_gguf
from ftjax.pretrained.load import load_model
from ftjax.pretrained.onnx import import_onnx

SECONDS = 10.0
EXPECTED = (ValueError, FileNotFoundError, OSError, RuntimeError)


def mutated(content: bytes, header: int, seed: int) -> bytes:
    """Content cut short, or with a few bytes of its header replaced, doubled or left out."""
    generator = random.Random(seed)
    content = bytearray(content)
    kind = generator.choice(["cut", "bytes", "bytes", "number", "left out", "doubled"])
    place = generator.randrange(header)
    if kind == "cut":
        return bytes(content[: generator.randrange(len(content))])
    if kind == "bytes":
        for _ in range(generator.randrange(1, 4)):
            content[generator.randrange(header)] = generator.randrange(256)
    elif kind == "number":
        content[place : place + 8] = generator.choice([b"\xff" * 8, bytes(8), b"\x7f" * 8])
    elif kind == "left out":
        del content[place : place + generator.randrange(1, 9)]
    else:
        content[place:place] = content[place : place + 8]
    return bytes(content)


def assert_sentence_or_network(importer, path, folder, network):
    """Imports and loads a file that may be damaged."""
    start = time.monotonic()
    try:
        importer(path, folder)
        load_model(folder, network)
    except EXPECTED as error:
        frame = traceback.extract_tb(error.__traceback__)[-1].filename
        assert "/ftjax/" in frame and "site-packages" not in frame, traceback.format_exc()
    assert time.monotonic() - start < SECONDS


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
        path.write_bytes(mutated(whole, header, seed))
        assert_sentence_or_network(import_gguf, path, tmp_path / f"{seed}", "causal_lm")


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    from test_onnx import Exported

    path = tmp_path / "model.onnx"
    onnx.save(Exported(norm_is_one_node=True).model(), path)
    whole = path.read_bytes()
    for seed in range(40):
        path.write_bytes(mutated(whole, len(whole), seed))
        assert_sentence_or_network(import_onnx, path, tmp_path / f"{seed}", "backbone")
