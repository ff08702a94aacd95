"""Adapters as peft writes and reads them: adapter_config.json, adapter_model.safetensors.

Low-rank adapters of all kinds, (IA)3, VeRA and prompts. Reference: peft's `LoraConfig`,
`IA3Config`, `VeraConfig` and `PromptTuningConfig` and their models. Beside peft's two files stands
ftjax_adapter.json with the SHA-256 of the weights that the adapter belongs to.
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
from ftjax.locate import sha256_of_folder
from ftjax.models import family_of
from ftjax.models.family import Family
from ftjax.models.heads import token_table
from ftjax.models.layers import Constant
from ftjax.models.prompt import Prompt
from ftjax.tuning.adapted import AdaptedEmbed, AdaptedLinear, QuantizedLinear
from ftjax.tuning.ia3 import ScaledInput, ScaledOutput
from ftjax.tuning.lora import (
    DoraLinear,
    LoraEmbed,
    LoraLinear,
    LowRank,
    PissaLinear,
)
from ftjax.tuning.targets import modules_of, replace_module
from ftjax.tuning.vera import VeraLinear

CONFIG, WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "ftjax_adapter.json"
KINDS = {
    "LORA": (LoraLinear, LoraEmbed),
    "IA3": (ScaledInput, ScaledOutput),
    "VERA": (VeraLinear,),
}
# peft writes what p-tuning's network makes, not the network.
PROMPTS = ("PROMPT_TUNING", "P_TUNING")
MODEL = "base_model.model."

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
    "num_transformer_submodules": (None, 1),
}


def save_adapter(network: nnx.Module, base: str | Path, folder: str | Path) -> None:
    """Writes a network's adapters, and nothing else of it; whole or not at all.

    PiSSA's are written as what they add to the published weights, which is of twice the rank, and
    p-tuning's as the prompt that its network makes.

    Args:
        network: a task's, with adapters in its `backbone`.
        base: the checkpoint folder it came from.
        folder: to be made.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: the network has no adapters, or some that peft has no format for.
    """
    base, folder = Path(base), Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another or delete it.")
    family = family_of(read_json(base / "config.json")["model_type"])
    prompt = getattr(network.backbone, "prompt", None)
    config, tensors = _described(network, family) if prompt is None else _prompt_described(prompt())
    config |= {
        "task_type": "CAUSAL_LM" if "causal_lm" in family.networks else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base.name,
        "inference_mode": True,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "content"
        new.mkdir()
        arrays = {n: np.ascontiguousarray(t, dtype=np.float32) for n, t in tensors.items()}
        save_file(arrays, new / WEIGHTS)
        write_json_atomically(new / CONFIG, config)
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
    if fields["peft_type"] in PROMPTS:
        network.backbone.prompt = _prompt(network, load_file(folder / WEIGHTS), folder)
        return
    family = family_of(read_json(base / "config.json")["model_type"])
    modules = modules_of(network, (nnx.Linear, nnx.Embed))
    paths = {_published(path, network, family): path for path in modules}
    found: dict[str, dict[str, np.ndarray]] = {}
    shared, unknown = {}, []
    for name, tensor in load_file(folder / WEIGHTS).items():
        module, _, leaf = name.removeprefix(MODEL).removesuffix(".weight").rpartition(".")
        if module in paths:
            found.setdefault(module, {})[leaf] = tensor
        elif name in ("base_model.vera_A", "base_model.vera_B"):
            shared[leaf] = Constant(jnp.asarray(tensor.T))
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{folder}: the network has no layers for {len(unknown)} tensors of the adapter: "
            f"{', '.join(unknown[:5])}."
        )
    if fields["peft_type"] == "VERA" and shared.keys() != {"vera_A", "vera_B"}:
        raise ValueError(
            f"{folder} lacks VeRA's random matrices, which peft can leave out and draw again; save "
            "it with save_projection=True."
        )
    for module, tensors in found.items():
        layer = modules[paths[module]]
        where = f"{folder}: {module}"
        if fields["peft_type"] == "LORA":
            layer = _low_rank(layer, module, tensors, fields, where)
        elif fields["peft_type"] == "IA3":
            layer = _scaled(layer, tensors, where)
        else:
            layer = _vera(layer, tensors, shared, fields.get("vera_dropout", 0.0), where)
        replace_module(network, paths[module], layer)


def _prompt_described(virtual: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    tokens, width = virtual.shape
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return config, {"prompt_embeddings": virtual}


def _described(network: nnx.Module, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """What adapter_config.json says of a network's adapted layers, and their tensors by name."""
    kind, layers = _adapters_of(network)
    names = {path: _published(path, network, family) for path in layers}
    tensors = {
        f"{MODEL}{names[path]}.{leaf}": value
        for path, layer in layers.items()
        for leaf, value in _tensors_of(layer).items()
    }
    config = {
        "peft_type": kind,
        "target_modules": sorted(names.values()),
        "fan_in_fan_out": family.model_type == "gpt2",
        "modules_to_save": None,
    }
    if kind == "LORA":
        config |= _lora_config(names, layers)
    elif kind == "IA3":
        inputs = [names[path] for path, layer in layers.items() if isinstance(layer, ScaledInput)]
        config["feedforward_modules"] = sorted(inputs)
    else:
        shared = next(iter(layers.values()))
        tensors["base_model.vera_A"] = shared.vera_a[...].T
        tensors["base_model.vera_B"] = shared.vera_b_shared[...].T
        config |= {"r": shared.vera_a.shape[1], "projection_prng_key": 0, "save_projection": True}
    return config, tensors


def _adapters_of(network: nnx.Module) -> tuple[str, dict[str, Any]]:
    """peft's name of the kind of adapters, and path -> adapter."""
    layers = {
        path: layer
        for path, layer in modules_of(network, (AdaptedLinear, AdaptedEmbed)).items()
        # Frozen in few bits, or with noise in training only: nothing was learned in them.
        if not isinstance(layer, QuantizedLinear) and type(layer) is not AdaptedEmbed
    }
    for kind, types in KINDS.items():
        if layers and all(isinstance(layer, types) for layer in layers.values()):
            return kind, layers
    has = type(next(iter(layers.values()))).__name__ if layers else "no adapters"
    raise ValueError(
        f"This network has {has}; what is written in peft's format are low-rank adapters, (IA)3, "
        "VeRA and prompts. Export it merged (without --adapter), or use the run itself."
    )


def _published(path: str, network: nnx.Module, family: Family) -> str:
    """The checkpoint's name of a module, as peft sees it in transformers' model."""
    inside = path.removeprefix("backbone.")
    # A network with a published head holds its backbone in a backbone of its own.
    with_head = hasattr(network.backbone, "backbone")
    full = f"{inside if with_head else f'backbone.{inside}'}.kernel"
    return family.published_name(full, with_prefix=with_head).removesuffix(".weight")


def _tensors_of(layer: nnx.Module) -> dict[str, Any]:
    """peft's names and layouts: torch has matrices the other way round."""
    if isinstance(layer, ScaledInput):
        return {"ia3_l": layer.factor[...][None]}
    if isinstance(layer, ScaledOutput):
        return {"ia3_l": layer.factor[...][:, None]}
    if isinstance(layer, VeraLinear):
        return {"vera_lambda_d": layer.vera_d[...], "vera_lambda_b": layer.vera_b[...]}
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


def _lora_config(names: Mapping[str, str], layers: Mapping[str, Any]) -> dict:
    ranks = {
        names[path]: layer.lora_a.shape[1] * (2 if isinstance(layer, PissaLinear) else 1)
        for path, layer in layers.items()
    }
    # peft scales by alpha / rank: what our layers are scaled by, whatever it came from.
    alphas = {names[path]: layer.how.scale * ranks[names[path]] for path, layer in layers.items()}
    first = next(iter(ranks))
    return {
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "lora_dropout": 0.0,
        "rank_pattern": {f"^{n}$": rank for n, rank in ranks.items() if rank != ranks[first]},
        "alpha_pattern": {f"^{n}$": a for n, a in alphas.items() if a != alphas[first]},
        "use_rslora": False,
        "use_dora": any(isinstance(layer, DoraLinear) for layer in layers.values()),
        "bias": "none",
    }


def _prompt(network: nnx.Module, tensors: dict[str, np.ndarray], folder: Path) -> Prompt:
    _require_tensors(tensors, {"prompt_embeddings"}, f"{folder}/{WEIGHTS}")
    virtual, table = tensors["prompt_embeddings"], token_table(network.backbone)
    if virtual.ndim != 2 or virtual.shape[1] != table.features:
        raise ValueError(
            f"{folder}: prompt_embeddings is {virtual.shape}, expected [tokens, {table.features}]."
        )
    return Prompt(jnp.asarray(virtual), key=jax.random.key(0))


def _low_rank(
    layer: nnx.Linear | nnx.Embed,
    name: str,
    tensors: dict[str, np.ndarray],
    fields: dict,
    where: str,
) -> LoraLinear | LoraEmbed:
    is_table = isinstance(layer, nnx.Embed)
    needed = {"lora_embedding_A", "lora_embedding_B"} if is_table else {"lora_A", "lora_B"}
    if fields.get("use_dora") and not is_table:
        needed.add("lora_magnitude_vector")
    _require_tensors(tensors, needed, where)
    a = next(value for leaf, value in tensors.items() if leaf.endswith("_A")).T
    b = next(value for leaf, value in tensors.items() if leaf.endswith("_B")).T
    shape = (layer.embedding if is_table else layer.kernel).shape
    if (a.shape[0], b.shape[1]) != shape or a.shape[1] != b.shape[0]:
        raise ValueError(f"{where} is {shape}, the adapter's matrices {a.shape} and {b.shape}.")
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


def _scaled(
    layer: nnx.Linear, tensors: dict[str, np.ndarray], where: str
) -> ScaledInput | ScaledOutput:
    _require_tensors(tensors, {"ia3_l"}, where)
    factor = tensors["ia3_l"]
    inputs, outputs = layer.kernel.shape
    if factor.shape not in ((1, inputs), (outputs, 1)):
        raise ValueError(f"{where} is {(inputs, outputs)}, the factors {factor.shape}.")
    adapted = (ScaledInput if factor.shape == (1, inputs) else ScaledOutput)(layer)
    adapted.factor.set_value(jnp.asarray(factor.reshape(-1)))
    return adapted


def _vera(
    layer: nnx.Linear,
    tensors: dict[str, np.ndarray],
    shared: dict[str, Constant],
    dropout_rate: float,
    where: str,
) -> VeraLinear:
    _require_tensors(tensors, {"vera_lambda_d", "vera_lambda_b"}, where)
    adapted = VeraLinear(layer, shared["vera_A"], shared["vera_B"], dropout_rate)
    for leaf, name in ((adapted.vera_d, "vera_lambda_d"), (adapted.vera_b, "vera_lambda_b")):
        if leaf.shape != tensors[name].shape:
            raise ValueError(f"{where}: {name} is {tensors[name].shape}, expected {leaf.shape}.")
        leaf.set_value(jnp.asarray(tensors[name]))
    return adapted


def _require_tensors(tensors: dict[str, np.ndarray], needed: set[str], where: str) -> None:
    if tensors.keys() != needed:
        found, wanted = (", ".join(sorted(names)) for names in (tensors, needed))
        raise ValueError(f"{where} has {found}; expected {wanted}.")


def _of_pattern(patterns: dict | None, name: str, default: float) -> float:
    """As peft looks up rank_pattern and alpha_pattern: the last part of a name, or a whole one."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern.lstrip('^')})$", name):
            return value
    return default


def _refuse_unsupported(fields: dict, folder: Path) -> None:
    known = (*KINDS, *PROMPTS)
    if fields.get("peft_type") not in known:
        raise ValueError(
            f"{folder}: an adapter of type {fields.get('peft_type')!r}; {', '.join(known)} can be "
            "loaded."
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
