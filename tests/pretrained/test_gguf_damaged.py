"""GGUF files whose bytes were changed: one sentence each."""

import gguf
import numpy as np
import pytest
from gguf_files import (
    write_llama,
)

from ftjax.pretrained.gguf import import_gguf

Type = gguf.GGMLQuantizationType


def changed_bytes(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def u32(*values):
    return np.asarray(values, "<u4").tobytes()


def u64(*values):
    return np.asarray(values, "<u8").tobytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"GGUF\x03", b"GGUF\x09", "its version is 9"),
        (b"GGUF" + u32(3), b"GGUF" + u32(3)[::-1], "made for big-endian machines"),
        (b"GGUF" + u32(3) + u64(20), b"GGUF" + u32(3) + u64(2**60), "announces 1,152,921"),
        (u32(9, 8) + u64(14), u32(9, 8) + u64(2**61), "a list of 2,305,843,009"),
        (u32(9, 5) + u64(14), u32(9, 5) + u64(2**21), "announces 8,388,608 bytes at"),
        (u32(9, 5) + u64(14), u32(9, 9) + u64(14), "of type ARRAY"),
        (u64(10) + b"apache-2.0", u64(2**63) + b"apache-2.0", "announces 9,223,372"),
        (b"apache-2.0", b"apache-\xff\xff0", "utf-8"),
        (b"blk.0.ffn_up.weight", b"blk.0.ffn_up.\xff\xff\xffght", "utf-8"),
        # Sizes, types and places of tensors.
        (b"ffn_up.weight" + u32(2) + u64(32, 64) + u32(0), None, "is at"),
        (
            b"blk.1.ffn_up.weight" + u32(2) + u64(32),
            b"blk.1.ffn_up.weight" + u32(2) + u64(31),
            "at",
        ),
        (
            b"blk.1.ffn_up.weight" + u32(2) + u64(32),
            b"blk.1.ffn_up.weight" + u32(2) + u64(2**62),
            "announces|damaged",
        ),
        (b"blk.1.ffn_up.weight" + u32(2), b"blk.1.ffn_up.weight" + u32(2**31), "announces"),
    ],
)
def test_a_damaged_file(tmp_path, old, new, message):
    path = tmp_path / "model.gguf"
    write_llama(path)
    if new is None:
        old = b"blk.1." + old
        new = old[:-4] + u32(1)
    changed_bytes(path, old, new)
    with pytest.raises(ValueError, match=message) as raised:
        import_gguf(path, tmp_path / "out")
    assert str(raised.value).startswith(f"{path} is damaged, cut short or not a GGUF file")


def test_bytes_after_the_last_tensor(tmp_path):
    path = tmp_path / "model.gguf"
    write_llama(path)
    path.write_bytes(path.read_bytes() + bytes(100))
    import_gguf(path, tmp_path / "out")
    path.write_bytes(path.read_bytes() + b"\x01" * 100)
    with pytest.raises(ValueError, match="bytes follow the last tensor"):
        import_gguf(path, tmp_path / "other")
