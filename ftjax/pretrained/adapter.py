"""Low-rank adapters as peft writes and reads them: adapter_config.json, adapter_model.safetensors.

Reference: peft's `LoraConfig` and `LoraModel`. Beside peft's two files stands ftjax_adapter.json
with the SHA-256 of the weights that the adapter belongs to.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from ftjax.files import read_json, write_json_atomically
from ftjax.models import family_of
from ftjax.models.family import Family
from ftjax.pretrained.locate import sha256_of_folder
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear, QuantizedLinear
from ftjax.tuning.lora import (
    DoraLinear,
    LoraEmbed,
    LoraLinear,
    LowRank,
    PissaLinear,
)
from ftjax.tuning.targets import modules_of, replace_module

CONFIG, WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "ftjax_adapter.json"

# Fields of adapter_config.json that change what the adapter computes, and the values that do not.
UNSUPPORTED = {
    "bias": ("none",),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "megatron_config": (None,),
}


def save_adapter(network: nnx.Module, base: str | Path, folder: str | Path) -> None:
    """Writes a network's adapters, and nothing else of it; whole or not at all.

    PiSSA's are written as what they add to the published weights, which is of twice the rank.

    Args:
        network: a task's, with low-rank adapters in its `backbone`.
        base: the checkpoint folder it came from.
        folder: to be made.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: there are no low-rank adapters.
    """
    base, folder = Path(base), Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another or delete it.")
    others = {
        path: layer
        for path, layer in modules_of(network, (AdaptedLinear, AdaptedEmbed)).items()
        if not isinstance(layer, LoraLinear | LoraEmbed | QuantizedLinear)
        and type(layer) is not AdaptedEmbed
    }
    layers = modules_of(network, (LoraLinear, LoraEmbed))
    if others or not layers:
        kind = type(next(iter(others.values()))).__name__ if others else "no adapter"
        raise ValueError(
            f"This network has {kind}, and peft's format here holds low-rank adapters only; export "
            "it merged (without --adapter)."
        )
    family = family_of(read_json(base / "config.json")["model_type"])
    names = {path: _published(path, network, family) for path in layers}
    tensors: dict[str, np.ndarray] = {}
    for path, layer in layers.items():
        for leaf, value in _tensors_of(layer).items():
            tensors[f"base_model.model.{names[path]}.{leaf}"] = np.asarray(value, np.float32)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "content"
        new.mkdir()
        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, new / WEIGHTS)
        is_causal = "causal_lm" in family.networks
        write_json_atomically(new / CONFIG, _config_of(names, layers, base, family, is_causal))
        write_json_atomically(new / OURS, {"base_sha256": sha256_of_folder(base)})
        os.replace(new, folder)


def load_adapter(network: nnx.Module, base: str | Path, folder: str | Path) -> None:
    """Puts adapters, of ours or of peft's, on a published network.

    Args:
        network: with the published network in `backbone`; changed in place.
        base: the checkpoint folder it came from.
        folder: what `save_adapter` or peft wrote.

    Raises:
        FileNotFoundError: no adapter in the folder.
        ValueError: made for other weights, of a kind or with settings that are not implemented, or
            with tensors that do not fit.
    """
    base, folder = Path(base), Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; an adapter has both.")
    fields = read_json(folder / CONFIG)
    _refuse_unsupported(fields, folder)
    _refuse_another_base(base, folder)
    family = family_of(read_json(base / "config.json")["model_type"])
    paths = {
        _published(path, network, family): path
        for path in modules_of(network, (nnx.Linear, nnx.Embed))
    }
    modules = modules_of(network, (nnx.Linear, nnx.Embed))
    found: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, tensor in load_file(folder / WEIGHTS).items():
        bare = name.removeprefix("base_model.model.").removesuffix(".weight")
        module, _, leaf = bare.rpartition(".")
        if module not in paths:
            unknown.append(name)
            continue
        found.setdefault(module, {})[leaf] = tensor
    if unknown:
        raise ValueError(
            f"{folder}: the network has no layers for {len(unknown)} tensors of the adapter: "
            f"{', '.join(unknown[:5])}."
        )
    for module, tensors in found.items():
        path = paths[module]
        layer = _adapted(modules[path], module, tensors, fields, folder)
        replace_module(network, path, layer)


def _published(path: str, network: nnx.Module, family: Family) -> str:
    """The checkpoint's name of a module, as peft sees it in transformers' model."""
    inside = path.removeprefix("backbone.")
    # A network with a published head holds its backbone in a backbone of its own.
    with_head = hasattr(network.backbone, "backbone")
    full = f"{inside if with_head else f'backbone.{inside}'}.kernel"
    return family.published_name(full, with_prefix=with_head).removesuffix(".weight")


def _tensors_of(layer: LoraLinear | LoraEmbed) -> dict[str, Any]:
    """peft's names and layouts: torch has matrices the other way round."""
    a, b = layer.lora_a[...], layer.lora_b[...]
    if isinstance(layer, LoraEmbed):
        return {"lora_embedding_A": a.T, "lora_embedding_B": b.T}
    if isinstance(layer, PissaLinear):
        a = jnp.concatenate([a, layer.start_a[...]], axis=1)
        b = jnp.concatenate([b, -layer.start_b[...]], axis=0)
    tensors = {"lora_A.weight": a.T, "lora_B.weight": b.T}
    if isinstance(layer, DoraLinear):
        tensors["lora_magnitude_vector"] = layer.magnitude[...]
    return tensors


def _config_of(
    names: Mapping[str, str],
    layers: Mapping[str, LoraLinear | LoraEmbed],
    base: Path,
    family: Family,
    is_causal: bool,
) -> dict:
    ranks = {
        names[path]: layer.lora_a.shape[1] * (2 if isinstance(layer, PissaLinear) else 1)
        for path, layer in layers.items()
    }
    # peft scales by alpha / rank: what our layers are scaled by, whatever it came from.
    alphas = {names[path]: layer.how.scale * ranks[names[path]] for path, layer in layers.items()}
    first = next(iter(ranks))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_causal else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base.name,
        "inference_mode": True,
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{n}$": rank for n, rank in ranks.items() if rank != ranks[first]},
        "alpha_pattern": {f"^{n}$": a for n, a in alphas.items() if a != alphas[first]},
        "use_rslora": False,
        "use_dora": any(isinstance(layer, DoraLinear) for layer in layers.values()),
        "bias": "none",
        "fan_in_fan_out": family.model_type == "gpt2",
        "modules_to_save": None,
    }


def _adapted(
    layer: nnx.Linear | nnx.Embed,
    name: str,
    tensors: dict[str, np.ndarray],
    fields: dict,
    folder: Path,
) -> LoraLinear | LoraEmbed:
    is_table = isinstance(layer, nnx.Embed)
    needed = (
        {"lora_embedding_A", "lora_embedding_B"}
        if is_table
        else {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if fields.get("use_dora") else set())
    )
    if tensors.keys() != needed:
        raise ValueError(
            f"{folder}: {name} has {', '.join(sorted(tensors))}; expected "
            f"{', '.join(sorted(needed))}."
        )
    a = next(value for leaf, value in tensors.items() if leaf.endswith("_A")).T
    b = next(value for leaf, value in tensors.items() if leaf.endswith("_B")).T
    shape = (layer.embedding if is_table else layer.kernel).shape
    if (a.shape[0], b.shape[1]) != shape or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"{folder}: {name} is {shape[0]} x {shape[1]}, the adapter's {a.shape} and {b.shape}."
        )
    rank = a.shape[1]
    alpha = _of_pattern(fields.get("alpha_pattern"), name, fields.get("lora_alpha", 8))
    scale = alpha / (rank**0.5 if fields.get("use_rslora") else rank)
    how, key = LowRank(rank, scale, fields.get("lora_dropout", 0.0)), jax.random.key(0)
    kind = LoraEmbed if is_table else DoraLinear if fields.get("use_dora") else LoraLinear
    adapted = kind(layer, how, key)
    adapted.lora_a.set_value(jnp.asarray(a))
    adapted.lora_b.set_value(jnp.asarray(b))
    if kind is DoraLinear:
        adapted.magnitude.set_value(jnp.asarray(tensors["lora_magnitude_vector"]))
    return adapted


def _of_pattern(patterns: dict | None, name: str, default: float) -> float:
    """As peft looks up rank_pattern and alpha_pattern: the last part of a name, or a whole one."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern.lstrip('^')})$", name):
            return value
    return default


def _refuse_unsupported(fields: dict, folder: Path) -> None:
    if fields.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder}: an adapter of type {fields.get('peft_type')!r}; LORA (with DoRA and "
            "rank-stabilised scaling) is what can be loaded."
        )
    for name, neutral in UNSUPPORTED.items():
        if name in fields and fields[name] not in neutral:
            raise ValueError(f"{folder}/{CONFIG}: {name} = {fields[name]!r} is not implemented.")


def _refuse_another_base(base: Path, folder: Path) -> None:
    if not (folder / OURS).is_file():
        return
    expected, found = read_json(folder / OURS)["base_sha256"], sha256_of_folder(base)
    if expected != found:
        raise ValueError(
            f"The adapter in {folder} was made for other weights (SHA-256 {expected[:12]}...) than "
            f"those in {base} ({found[:12]}...). Use the base that it was trained on."
        )
