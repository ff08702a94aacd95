"""A checkpoint folder: its config.json, and its tensors by name."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ftjax.files import read_json
from ftjax.models import FAMILIES
from ftjax.pretrained.wrapper import WRAPPERS, language_model_fields, language_model_name

# As safetensors names them.
FLOATS = ("F64", "F32", "F16", "BF16")
LONGEST_FILE_NAME = 255


class Checkpoint:
    """The tensors of a folder's safetensors file or files, read one at a time.

    Of a checkpoint that also sees images these are its language model's, by the names they have in
    a checkpoint of that alone.

    Attributes:
        folder: where config.json stands.
        fields: as `read_config` gives them.
        files: tensor name -> file that holds it.
        wrapper: model_type of what the language model was taken out of, else None.
        other_parts: names of the tensors of its other parts.
        left_behind: tensors of heads that the network, when it was filled, had no use for.
    """

    def __init__(self, folder: str | Path):
        """Opens a checkpoint folder without reading tensors.

        Raises:
            FileNotFoundError: no config.json, no weights, or a missing shard.
            ValueError: only pickled weights, or a damaged file.
        """
        self.folder = Path(folder)
        self.fields, self.wrapper = _read_config(self.folder)
        self.files: dict[str, Path] = {}
        self.other_parts: list[str] = []
        self.left_behind: list[str] = []
        self._stored_names: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._other_types: dict[str, str] = {}
        for path in _weight_files(self.folder):
            with opened(path) as file:
                for stored in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    self._list(path, stored, file.get_slice(stored))

    def _list(self, path: Path, stored: str, part: Any) -> None:
        """Remembers a tensor; `part` knows its type and shape, which the library has checked."""
        name = language_model_name(stored) if self.wrapper else stored
        if name is None:
            self.other_parts.append(stored)
            return
        if name in self.files:
            raise ValueError(
                f"{self.folder}: {name} is in {self.files[name].name} and {path.name}."
            )
        self.files[name] = path
        self._stored_names[name] = stored
        self._shapes[name] = tuple(part.get_shape())
        if part.get_dtype() not in FLOATS:
            self._other_types[name] = part.get_dtype()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        """One tensor; bfloat16 comes as ml_dtypes.bfloat16.

        Raises:
            ValueError: it holds whole numbers or others that are no weights, or the file is
                damaged.
        """
        if name in self._other_types:
            raise ValueError(
                f"{self.files[name]}: {name} holds {self._other_types[name]}, which are no "
                f"weights; {', '.join(FLOATS)} can be loaded."
            )
        # Opened anew: a file that stays mapped keeps all its pages in this process's memory.
        with opened(self.files[name]) as file:
            return file.get_tensor(self._stored_names[name])


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of a checkpoint's config.json; of one that also sees images, its text's part.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object, or its network is defined by code of its own.
    """
    return _read_config(Path(folder))[0]


def _read_config(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The fields, and the model_type of what their part was taken out of."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json; a checkpoint folder has config.json and "
            "*.safetensors. Of a repository of GGUF files, name one: hf://org/name/file.gguf."
        )
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no JSON object, but {type(fields).__name__}.")
    kind, wrapper = fields.get("model_type"), None
    if isinstance(kind, str) and kind in WRAPPERS:
        fields, wrapper = language_model_fields(fields), kind
        kind = fields["model_type"]
    if not isinstance(kind, str):
        raise ValueError(
            f"{path}: model_type = {kind!r} does not say which family the network is of; the file "
            "is damaged, or not of transformers."
        )
    if kind not in FAMILIES and fields.get("auto_map"):
        raise ValueError(
            f"{path}: model_type {kind!r} is defined by code in its repository (auto_map), which "
            f"is never run here, and is none of the families ftjax has: "
            f"{', '.join(sorted(FAMILIES))}."
        )
    return fields, wrapper


def _weight_files(folder: Path) -> list[Path]:
    # In transformers' order: an index beside a whole file is left over from other weights.
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    pickles = sorted(
        path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)
    )
    if pickles:
        raise ValueError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run code when "
            "read. Convert them once where torch is installed and you trust the file: python -c "
            '"import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
            f"torch.load('{pickles[0]}', weights_only=True).items()}}, 'model.safetensors')\""
        )
    raise FileNotFoundError(
        f"{folder} holds no model.safetensors and no model.safetensors.index.json."
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the index is no JSON, maps no tensor names to files beside it.
    """
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map from tensor names to files; it is damaged.")
    for name, shard in weight_map.items():
        if not _is_file_name(shard):
            raise ValueError(
                f"{index}: {name} is in {str(shard)[:80]!r}, which is no file beside the index."
            )
    files = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{index} names the shard {path.name}, which is missing.")
    return files


def _is_file_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name.encode("utf-8", "replace")) <= LONGEST_FILE_NAME
        and Path(name).name == name != ".."
        and name.isprintable()
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open safetensors file; what the library says of a damaged one becomes one sentence."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}); download it again."
        ) from error
