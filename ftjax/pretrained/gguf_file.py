"""A GGUF file as checked values: what it announces is compared with its length before it is read.

The `gguf` library reads and dequantises. Reference: llama.cpp's docs/gguf.md and gguf.cpp.
"""

import dataclasses
import fnmatch
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

# Far above any file there is; far below what a damaged count announces.
LARGEST_COUNT = 100_000
LARGEST_LIST = 4_000_000
LARGEST_NUMBER = 2**31
PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
REQUIRED = object()
FLOAT_TYPES = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.F64}


class Metadata:
    """The keys of a GGUF file, each checked when it is read, and all of them accounted for."""

    def __init__(self, file: Path, values: Mapping[str, Any]):
        self.file = file
        self._values = dict(values)
        self._read: set[str] = set()

    def __iter__(self):
        return iter(self._values.items())

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """A text that is not empty."""
        return self._checked(key, default, "a text", lambda value: isinstance(value, str) and value)

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        """True or False."""
        return self._checked(key, default, "true or false", lambda value: isinstance(value, bool))

    def whole(self, key: str, default: Any = REQUIRED, *, low: int = 1, high: int | None = None):
        """A whole number from `low` to `high`; of a list of equal ones, that one."""
        high = LARGEST_NUMBER if high is None else high
        what = f"a whole number from {low} to {high}"
        return self._checked(key, default, what, lambda v: _is_whole(v) and low <= v <= high)

    def number(self, key: str, default: Any = REQUIRED, *, low: float = 0.0, high: float = 1e12):
        """A finite number above `low`, at most `high`, as it was before float32."""
        what = f"a number above {low:g}, at most {high:g}"
        value = self._checked(key, default, what, lambda v: _is_number(v) and low < v <= high)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def texts(self, key: str, default: Any = REQUIRED) -> Any:
        """A list of texts."""
        return self._list(key, default, "texts", lambda value: isinstance(value, str))

    def wholes(self, key: str, default: Any = REQUIRED) -> Any:
        """A list of whole numbers."""
        return self._list(key, default, "whole numbers", _is_whole)

    def numbers(self, key: str, default: Any = REQUIRED) -> Any:
        """A list of finite numbers."""
        return self._list(key, default, "finite numbers", _is_number)

    def flags(self, key: str, default: Any = REQUIRED) -> Any:
        """A list of true and false."""
        return self._list(key, default, "true and false", lambda value: isinstance(value, bool))

    def has_list(self, key: str) -> bool:
        """Whether the key is there and holds a list."""
        return isinstance(self._values.get(key), list)

    def refuse_unread(
        self,
        namespaces: Iterable[str],
        harmless: Iterable[str],
        neutral: Mapping[str, tuple],
    ) -> list[str]:
        """Refuses keys that may change what the network computes and that nothing here reads.

        Args:
            namespaces: beginnings of keys that llama.cpp acts on; other keys are notes.
            harmless: patterns of keys in them that change nothing.
            neutral: key -> the values with which it changes nothing.

        Returns:
            The keys that were passed over.

        Raises:
            ValueError: lists the others.
        """
        unread = {k: v for k, v in self._values.items() if k not in self._read}
        refused = {
            key: value
            for key, value in unread.items()
            if key.startswith(tuple(namespaces))
            and not any(fnmatch.fnmatchcase(key, pattern) for pattern in harmless)
            and not (key in neutral and value in neutral[key])
        }
        if refused:
            shown = ", ".join(f"{key} = {_short(value)}" for key, value in refused.items())
            raise ValueError(
                f"{self.file}: the meaning of {shown} is not known here; it may change what the "
                "network computes, so the file is not imported."
            )
        return sorted(unread)

    def _list(self, key: str, default: Any, what: str, is_one) -> Any:
        return self._checked(
            key,
            default,
            f"a list of {what}",
            lambda value: isinstance(value, list) and all(map(is_one, value)),
            unwrap=False,
        )

    def _checked(self, key: str, default: Any, what: str, is_valid, unwrap: bool = True) -> Any:
        self._read.add(key)
        if key not in self._values:
            if default is REQUIRED:
                raise ValueError(f"{self.file} has no {key}; {what} was looked for.")
            return default
        value = self._values[key]
        if unwrap and isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if not is_valid(value):
            raise ValueError(f"{self.file}: {key} is {_short(value)}; {what} is needed.")
        return value


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """One model, all parts of its file together.

    Attributes:
        path: for messages.
        metadata: its keys.
        tensors: name -> the library's description with the stored bytes, not yet dequantised.
    """

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in torch's order, rows first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """A tensor, dequantised, float32.

        Raises:
            ValueError: NaN or infinity in it, or a type that cannot be dequantised.
        """
        tensor = self.tensors[name]
        with np.errstate(all="ignore"):
            try:
                value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            except Exception as error:
                raise ValueError(
                    f"{self.path}: {name} is stored as {tensor.tensor_type.name}, which the gguf "
                    f"library cannot turn into numbers ({error})."
                ) from error
        if not np.isfinite(value).all():
            raise ValueError(
                f"{self.path}: the tensor {name} holds NaN or infinity; the file is damaged."
            )
        return value.reshape(self.shape(name))


def read_gguf(file: str | Path) -> GGUFFile:
    """Opens a GGUF file, or all parts of one that is split.

    Raises:
        FileNotFoundError: no such file, or a part of it is missing.
        ValueError: it is damaged, or not a GGUF file.
    """
    file = Path(file)
    parts = [(path, _opened(path)) for path in parts_of(file)]
    values, tensors = {}, {}
    for path, reader in parts:
        for name, value in reader.values.items():
            # What is said of a part is checked below.
            if not name.startswith("split.") and values.setdefault(name, value) != value:
                raise ValueError(f"{path}: {name} is not what it is in {parts[0][0].name}.")
        for tensor in reader.tensors:
            if tensor.name in tensors:
                raise ValueError(f"{path}: the tensor {tensor.name} is in two parts of the file.")
            tensors[tensor.name] = tensor
    _check_parts(parts, len(tensors))
    return GGUFFile(file, Metadata(file, values), tensors)


def parts_of(file: Path) -> list[Path]:
    """All parts of a split file in order, by their names; of any other file, itself.

    Raises:
        FileNotFoundError: some are missing.
    """
    match = PART_NAME.fullmatch(file.name)
    if not match:
        return [file]
    count = int(match[3])
    if not 1 <= int(match[2]) <= count <= LARGEST_COUNT:
        raise ValueError(f"{file}: there is no part {int(match[2])} of {count}.")
    parts = [
        file.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{file} is one of {count} parts, and beside it is no {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}. All parts are needed, in one folder."
        )
    return parts


def _check_parts(parts: list, tensors: int) -> None:
    """Compares what parts say of each other with what is there."""
    for number, (path, reader) in enumerate(parts):
        said = reader.values.get("split.count", 1), reader.values.get("split.no", 0)
        # A file that is whole says 0 or nothing.
        if said not in ((len(parts), number), (0, 0)):
            raise ValueError(
                f"{path} says that it is part {_short(said[1])} (the first is 0) of "
                f"{_short(said[0])}, and is read as part {number} of {len(parts)}. Parts are found "
                "by their names: name-00001-of-00003.gguf, all in one folder."
            )
    announced = parts[0][1].values.get("split.tensors.count", tensors)
    if announced != tensors:
        raise ValueError(
            f"{parts[0][0]} announces {_short(announced)} tensors in all parts; {tensors} are "
            "there."
        )


class _Reader(gguf.GGUFReader):
    """The library's reader, which looks at the length of the file before it believes a number."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.values = {
            name: field.contents()
            for name, field in self.fields.items()
            if not name.startswith("GGUF.")
        }
        self._check_places()

    def _get(self, offset, dtype, count=1, override_order=None):
        size = np.dtype(dtype).itemsize * int(count)
        if int(offset) + size > len(self.data):
            raise ValueError(
                f"it announces {size:,} bytes at {int(offset):,}, its length is {len(self.data):,}"
            )
        return super()._get(int(offset), dtype, count, override_order)

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        inner = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        if inner == GGUFValueType.ARRAY or count > LARGEST_LIST:
            raise ValueError(f"it announces a list of {count:,} values of type {inner.name}")
        if inner == GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        # All values at once: the library makes an array of each.
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        values = self._get(orig_offs + 12, self.gguf_scalar_to_np[inner], count)
        types = [GGUFValueType.ARRAY, inner]
        return 12 + values.nbytes, [*head, values], [2], types

    def _check_places(self) -> None:
        """Tensors lie one behind the other, as llama.cpp demands: a wrong size or type shows."""
        end = self.data_offset
        for tensor in sorted(self.tensors, key=lambda t: t.data_offset):
            if tensor.data_offset != end:
                raise ValueError(f"{tensor.name} is at {tensor.data_offset:,}, not at {end:,}")
            if math.prod(int(size) for size in tensor.shape) != tensor.n_elements:
                raise ValueError(f"{tensor.name} announces {list(tensor.shape)} values")
            end += -(-tensor.n_bytes // int(self.alignment)) * int(self.alignment)
        if np.any(self.data[end:]):
            raise ValueError(f"{len(self.data) - end:,} bytes follow the last tensor")


def _opened(path: Path) -> _Reader:
    """The one place where the library's errors become a sentence."""
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    try:
        _check_head(path)
        # Numbers that overflow while a size is computed are found out when it is compared.
        with np.errstate(all="ignore"):
            return _Reader(path)
    except Exception as error:
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise ValueError(
            f"{path} is damaged, cut short or not a GGUF file ({reason}); fetch it again."
        ) from error


def _check_head(path: Path) -> None:
    """Looks at the first 24 bytes, whose counts the library would follow to the end of memory."""
    with open(path, "rb") as file:
        head = file.read(24)
    if head[:4] != b"GGUF":
        raise ValueError(f"it begins with {head[:4]!r}, not with b'GGUF'")
    if len(head) < 24:
        raise ValueError(f"it has {os.path.getsize(path)} bytes")
    version, tensors, keys = struct.unpack("<IQQ", head[4:])
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, or it was made for big-endian machines")
    if max(tensors, keys) > LARGEST_COUNT:
        raise ValueError(f"it announces {tensors:,} tensors and {keys:,} keys")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
