"""From a reference to a checkpoint folder, whatever form the weights are published in."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from ftjax.locate import cache_folder, locate, sha256_of_file, sha256_of_folder
from ftjax.pretrained.gguf import import_gguf
from ftjax.pretrained.gguf_file import parts_of
from ftjax.pretrained.onnx import import_onnx
from ftjax.pretrained.onnx_t5 import import_onnx_t5, is_onnx_t5

IMPORTERS = {".gguf": import_gguf, ".onnx": import_onnx}


def checkpoint_folder(reference: str) -> Path:
    """The folder of a reference with config.json, safetensors and tokenizer.

    A GGUF or ONNX file is imported into the cache on first use, with weights in float32; this needs
    no network and no torch.

    Raises:
        ValueError: a file of a kind that cannot be imported.
        FileNotFoundError, ConnectionError: as `locate`.
    """
    path = locate(reference)
    if path.is_dir() and not is_onnx_t5(path):
        return path
    if path.is_dir():
        return _imported(path, sha256_of_folder(path), import_onnx_t5)
    if path.suffix not in IMPORTERS:
        raise ValueError(
            f"{reference} is the file {path.name}. A checkpoint is a folder with config.json and "
            f"safetensors, or a file that can be imported: {', '.join(IMPORTERS)}."
        )
    hashes = [sha256_of_file(part) for part in parts_of(path)]
    key = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return _imported(path, key, IMPORTERS[path.suffix])


def _imported(path: Path, key: str, importer: Callable) -> Path:
    folder = cache_folder() / "imported" / key[:32]
    os.makedirs(folder.parent, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            importer(path, folder, dtype=np.float32)
    return folder
