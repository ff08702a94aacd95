"""The two files of a peft adapter, read and checked before a network is touched."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.files import read_json
from ftjax.pretrained.checkpoint import FLOATS, opened
from ftjax.tuning import METHODS
from ftjax.tuning.adapter_form import AdapterForm
from ftjax.tuning.peft_settings import read_settings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMS: Mapping[str, AdapterForm] = {
    kind: method.adapter_form
    for method in METHODS.values()
    if method.adapter_form is not None
    for kind in method.adapter_form.peft_types
}


def read_adapter_config(
    folder: Path, say: Callable[[str], None] | None = None
) -> tuple[AdapterForm, dict[str, Any]]:
    """What adapter_config.json says: the kind of adapter, and its settings.

    Args:
        folder: the adapter's.
        say: told of fields that are passed over.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object, of a kind that cannot be loaded, or has a field that is
            not used, not harmless, or holds what it cannot.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}; an adapter has it and {WEIGHTS}.")
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no JSON object, but {type(fields).__name__}.")
    kind = fields.get("peft_type")
    if not isinstance(kind, str) or kind not in FORMS:
        raise ValueError(f"{path}: an adapter of type {kind!r}; {', '.join(FORMS)} can be loaded.")
    settings, empty = read_settings(fields, FORMS[kind].settings, str(path))
    if empty and say is not None:
        say(f"{path}: passed over, since they are not known and empty: {', '.join(empty)}.")
    return FORMS[kind], settings


def read_adapter_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of adapter_model.safetensors, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: only pickled weights, a damaged file, tensors that are no weights, NaN or Inf.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ValueError(
                f"{folder} holds only adapter_model.bin, a pickle, which can run code when read. "
                "Load it with peft where you trust it, and save_pretrained it as safetensors."
            )
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}; an adapter has it and {CONFIG}.")
    tensors, damaged = {}, []
    # It refuses a header whose sizes are not those of the file before anything is allocated.
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            kind = file.get_slice(name).get_dtype()
            if kind not in FLOATS:
                raise ValueError(
                    f"{path}: {name} holds {kind}, which are no weights; {', '.join(FLOATS)} can "
                    "be loaded."
                )
            with np.errstate(over="ignore"):
                tensors[name] = file.get_tensor(name).astype(np.float32)
            if not np.isfinite(tensors[name]).all():
                damaged.append(name)
    if damaged:
        raise ValueError(
            f"{path}: {some(damaged)} of {len(tensors)} tensors hold NaN or Inf; the file is "
            "damaged or was saved from a diverged run."
        )
    if not tensors:
        raise ValueError(f"{path} holds no tensors.")
    return tensors


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
