"""From any reference to a checkpoint folder."""

import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import write_llama, write_parts
from safetensors.numpy import load_file
from tiny import contents

from ftjax.pretrained.checkpoint_folder import checkpoint_folder, write_checkpoint_folder
from ftjax.pretrained.load import load_model


def test_a_folder_with_nothing_but_a_gguf(tmp_path, cache):
    (tmp_path / "hub").mkdir()
    write_llama(tmp_path / "hub/model.gguf")
    folder = checkpoint_folder(str(tmp_path / "hub"))
    assert folder == checkpoint_folder(str(tmp_path / "hub/model.gguf"))
    load_model(folder, "causal_lm")


def test_a_folder_with_the_parts_of_one(tmp_path, cache):
    (tmp_path / "hub").mkdir()
    write_parts(tmp_path / "hub")
    load_model(checkpoint_folder(str(tmp_path / "hub")), "causal_lm")


def test_a_folder_with_several(tmp_path, cache):
    for name in ("a.gguf", "b.gguf"):
        write_llama(tmp_path / name)
    with pytest.raises(ValueError, match=r"several models: name one of a\.gguf, b\.gguf"):
        checkpoint_folder(str(tmp_path))


def test_a_folder_with_none(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match=r"no config\.json.*hf://org/name/file\.gguf"):
        load_model(checkpoint_folder(str(tmp_path)))


def test_a_file_is_written_in_the_type_asked_for(tmp_path):
    write_llama(tmp_path / "model.gguf")
    for dtype in (None, "bfloat16"):
        folder = tmp_path / f"as {dtype}"
        write_checkpoint_folder(str(tmp_path / "model.gguf"), folder, dtype)
        tensors = load_file(folder / "model.safetensors").values()
        assert {tensor.dtype for tensor in tensors} == {jnp.dtype(dtype or np.float32)}


def test_a_checkpoint_is_copied(tmp_path, tiny_bert):
    write_checkpoint_folder(str(tiny_bert), tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(tiny_bert)
    with pytest.raises(FileExistsError, match="copy is there already"):
        write_checkpoint_folder(str(tiny_bert), tmp_path / "copy")
    with pytest.raises(ValueError, match="leave the dtype out"):
        write_checkpoint_folder(str(tiny_bert), tmp_path / "other", "bfloat16")
