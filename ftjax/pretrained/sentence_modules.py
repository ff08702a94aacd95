"""A classifier as sentence-transformers lays it out: modules that are applied one after the other.

modules.json names them: the network (the folder itself), how its tokens become one vector
(1_Pooling), and a linear layer without activation (2_Dense). What
`SentenceTransformer(folder).encode(texts)` gives are then the logits. Names and formats are those
of https://github.com/huggingface/sentence-transformers, in the spelling that old and new versions
read; names of classes stand in config.json, where transformers has them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ftjax.files import read_json, write_json_atomically
from ftjax.models.heads import TextClassifier
from ftjax.models.layers import Network

MODULES = "modules.json"
# What SetFit writes beside them, of which `locate` leaves the first where it is.
PICKLED_HEAD, ITS_SETTINGS = "model_head.pkl", "config_setfit.json"
NAMES = ("Transformer", "Pooling", "Dense")
IDENTITY = "torch.nn.modules.linear.Identity"
# Our way to pool -> theirs, in the older spelling and in the newer.
POOLING = {
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "first": ("pooling_mode_cls_token", "cls"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A linear layer over pooled tokens.

    Attributes:
        pooling: as of `TextClassifier`.
        kernel: float32 [hidden, classes].
        bias: float32 [classes].
        classes: their names, in the order of the logits.
    """

    pooling: str
    kernel: np.ndarray
    bias: np.ndarray
    classes: tuple[str, ...]


def require_modules(network: TextClassifier) -> None:
    """Refuses a head that has no such form.

    Raises:
        ValueError: one on the published pooler.
    """
    if network.pooling not in POOLING:
        raise ValueError(
            "A head on the published pooler is a part of the family's own classifier: export the "
            "whole network, or train with config.model.head = 'published'."
        )


def write_modules(folder: Path, network: TextClassifier, longest_row: int) -> None:
    """Writes what stands beside the network's own files.

    Args:
        folder: with the network, or to have it.
        network: its `pooling` is "mean", "first" or "last".
        longest_row: tokens that a text is cut to.
    """
    kernel = np.asarray(network.classifier.kernel[...], np.float32)
    hidden, classes = kernel.shape
    paths = ("", "1_Pooling", "2_Dense")
    _write_list(folder, dict(zip(paths, NAMES, strict=True)), longest_row)
    _write_pooling(folder, hidden, network.pooling)
    (folder / "2_Dense").mkdir()
    dense = {"in_features": hidden, "out_features": classes, "bias": True}
    dense |= {"activation_function": IDENTITY}
    write_json_atomically(folder / "2_Dense" / "config.json", dense)
    bias = np.asarray(network.classifier.bias[...], np.float32)
    tensors = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
    save_file(tensors, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})


def write_embedding_modules(folder: Path, hidden: int, pooling: str, longest_row: int) -> None:
    """Writes what makes a network's folder one that gives unit vectors of texts.

    Args:
        folder: with the network.
        hidden: numbers of a vector.
        pooling: "mean", "first" or "last".
        longest_row: tokens that a text is cut to.
    """
    parts = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    _write_list(folder, parts, longest_row)
    (folder / "2_Normalize").mkdir()
    _write_pooling(folder, hidden, pooling)
    write_json_atomically(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _write_list(folder: Path, parts: Mapping[str, str], longest_row: int) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(parts.items())
    ]
    write_json_atomically(folder / MODULES, modules)
    write_json_atomically(
        folder / "sentence_bert_config.json",
        {"max_seq_length": longest_row, "do_lower_case": False},
    )


def _write_pooling(folder: Path, hidden: int, pooling: str) -> None:
    (folder / "1_Pooling").mkdir()
    modes = {older: mode == pooling for mode, (older, _) in POOLING.items()}
    content = {"word_embedding_dimension": hidden, **modes}
    write_json_atomically(folder / "1_Pooling" / "config.json", content)


def read_head(folder: str | Path) -> LinearHead | None:
    """The head of a folder that is a classifier in this layout; None of any other folder.

    A folder of sentence embeddings is none: it has other modules, or no names of classes.

    Raises:
        ValueError: a file of the layout is damaged, or does not fit the others.
    """
    folder = Path(folder)
    modules = read_json(folder / MODULES) if (folder / MODULES).is_file() else None
    paths = _paths(modules)
    classes = _classes(folder / "config.json")
    if paths is None or classes is None:
        return None
    dense = _object(folder / paths[2] / "config.json")
    if dense.get("activation_function") != IDENTITY or dense.get("out_features") != len(classes):
        return None
    pooling = _pooling(_object(folder / paths[1] / "config.json"))
    if pooling is None:
        return None
    file = folder / paths[2] / "model.safetensors"
    try:
        tensors = load_file(file)
        kernel, bias = tensors["linear.weight"].T, tensors["linear.bias"]
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{file} has no linear.weight and linear.bias ({error}).") from error
    if kernel.shape != (dense.get("in_features"), len(classes)) or bias.shape != (len(classes),):
        raise ValueError(
            f"{file}: weight and bias are {kernel.shape[::-1]} and {bias.shape}; config.json says "
            f"{dense.get('in_features')} features, and there are {len(classes)} classes."
        )
    if not all(np.isfinite(tensor).all() for tensor in (kernel, bias)):
        raise ValueError(f"{file} holds NaN or Inf; it is damaged.")
    return LinearHead(pooling, kernel.astype(np.float32), bias.astype(np.float32), classes)


def refuse_pickled_head(folder: Path) -> None:
    """Refuses the head of a SetFit model that `setfit` saved.

    Raises:
        ValueError: there is such a head.
    """
    if any((folder / name).exists() for name in (PICKLED_HEAD, ITS_SETTINGS)):
        raise ValueError(
            f"{folder}: the head of this SetFit model is a pickle ({PICKLED_HEAD}), and opening "
            "one may run whatever code its author put there, so it is not read. The network can be "
            "used: set config.model.head = 'new', or config.objective.name = 'setfit', which "
            "solves a head from your texts in a moment."
        )


def with_head(backbone: Network, head: LinearHead, *, dropout_rate: float = 0.0) -> TextClassifier:
    """A classifier of a network and a head that was read.

    Raises:
        ValueError: the head is for another width.
    """
    width = backbone.config.hidden_size
    if head.kernel.shape[0] != width:
        raise ValueError(
            f"The head in 2_Dense reads {head.kernel.shape[0]} features, the network has {width}."
        )
    network = TextClassifier(
        backbone,
        len(head.classes),
        pooling=head.pooling,
        dropout_rate=dropout_rate,
        rngs=nnx.Rngs(0),
    )
    for leaf, value in (
        (network.classifier.kernel, head.kernel),
        (network.classifier.bias, head.bias),
    ):
        leaf.set_value(jnp.asarray(value, leaf.dtype))
    return network


def _paths(modules: Any) -> list[str] | None:
    """Where the three modules are; None if there are others."""
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        return None
    names = tuple(str(module.get("type")).rpartition(".")[2] for module in modules)
    paths = [str(module.get("path")) for module in modules]
    # Beside the network, and nowhere else.
    inside = all(path not in ("", ".", "..") and Path(path).name == path for path in paths[1:])
    return paths if names == NAMES and paths[0] == "" and inside else None


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object, but {type(content).__name__}.")
    return content


def _classes(file: Path) -> tuple[str, ...] | None:
    fields = read_json(file) if file.is_file() else None
    names = fields.get("id2label") if isinstance(fields, dict) else None
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))):
        return None
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _pooling(fields: dict[str, Any]) -> str | None:
    """Our name of the only way to pool; None if there are several, or another."""
    older = [name for name, is_on in fields.items() if name.startswith("pooling_mode_") and is_on]
    modes = [fields["pooling_mode"]] if "pooling_mode" in fields else older
    found = [ours for ours, names in POOLING.items() if modes in ([names[0]], [names[1]])]
    return found[0] if found else None
