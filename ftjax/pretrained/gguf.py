"""From a GGUF file to an ordinary checkpoint folder, without torch.

Tensors get their published names and layout back, metadata becomes config.json, and the tokenizer
is rebuilt as tokenizer.json. Reference: llama.cpp's convert_hf_to_gguf.py, whose changes to the
weights are undone, and its llama-model.cpp for what a file leaves unsaid.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ftjax.files import new_folder, require_new
from ftjax.models import family_of
from ftjax.pretrained.export import write_shards
from ftjax.pretrained.gguf_file import GGUFFile, read_gguf
from ftjax.pretrained.gguf_tokenizer import make_tokenizer

# GGUF's name -> published name and shape; the sizes are those of `_sizes`.
TOP = {
    "token_embd": ("model.embed_tokens", ("vocabulary", "hidden")),
    "output_norm": ("model.norm", ("hidden",)),
    "output": ("lm_head", ("vocabulary", "hidden")),
}
BLOCK = {
    "attn_norm": ("input_layernorm", ("hidden",)),
    "attn_q": ("self_attn.q_proj", ("query", "hidden")),
    "attn_k": ("self_attn.k_proj", ("key", "hidden")),
    "attn_v": ("self_attn.v_proj", ("key", "hidden")),
    "attn_output": ("self_attn.o_proj", ("hidden", "query")),
    "ffn_norm": ("post_attention_layernorm", ("hidden",)),
    "ffn_gate": ("mlp.gate_proj", ("wide", "hidden")),
    "ffn_up": ("mlp.up_proj", ("wide", "hidden")),
    "ffn_down": ("mlp.down_proj", ("hidden", "wide")),
}
HEAD_NORMS = {
    "attn_q_norm": ("self_attn.q_norm", ("head",)),
    "attn_k_norm": ("self_attn.k_norm", ("head",)),
}
# Gemma 2 and 3 have a norm before and after each half of the block.
SANDWICH = BLOCK | {
    "post_attention_norm": ("post_attention_layernorm", ("hidden",)),
    "ffn_norm": ("pre_feedforward_layernorm", ("hidden",)),
    "post_ffw_norm": ("post_feedforward_layernorm", ("hidden",)),
}
PHI3 = {name: BLOCK[name] for name in ("attn_norm", "attn_output", "ffn_norm", "ffn_down")} | {
    "attn_qkv": ("self_attn.qkv_proj", ("query, key, value", "hidden")),
    "ffn_up": ("mlp.gate_up_proj", ("gate, up", "hidden")),
}
QKV = ("attn_q", "attn_k", "attn_v")

# Beginnings of keys that llama.cpp acts on, besides the architecture's; others are notes.
NAMESPACES = ("tokenizer.", "split.", "adapter.", "clip.", "diffusion.", "imatrix.", "xielu.")
# What says nothing about the computation, and what says the same again.
HARMLESS = (
    *("*.vocab_size", "*.rope.scaling.finetuned", "split.*", "tokenizer.chat_template.*"),
    *("tokenizer.chat_templates", "tokenizer.huggingface.json", "tokenizer.ggml.pre"),
    *("tokenizer.ggml.*_token_id", "tokenizer.ggml.token_type_count"),
    # Of the other kind of tokenizer, where a file has them.
    *("tokenizer.ggml.add_space_prefix", "tokenizer.ggml.scores", "tokenizer.ggml.merges"),
)
# Keys that change nothing when they have one of these values.
NEUTRAL = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What an architecture of GGUF has of its own.

    Attributes:
        model_type: of config.json.
        block: its tensors in every block.
        finish: (file, architecture, config.json so far) -> what config.json has besides.
        biases: (file, the fields) -> which of a block's linear layers have a bias.
        norms_from_one: whether norms are published as their difference from one.
        interleaved: whether queries and keys are stored with pairs of features side by side.
    """

    model_type: str
    block: Mapping[str, tuple[str, tuple[str, ...]]]
    finish: Callable[[GGUFFile, str, dict], dict]
    biases: Callable[[GGUFFile], tuple[str, ...]] = lambda source: ()
    norms_from_one: bool = False
    interleaved: bool = False


def import_gguf(file: str | Path, folder: str | Path, *, dtype: Any = ml_dtypes.bfloat16) -> None:
    """Writes a checkpoint folder, whole or not at all.

    Args:
        file: the GGUF file; of a split one, any of its parts.
        folder: to be made: config.json, safetensors, tokenizer.json, tokenizer_config.json,
            generation_config.json and README.md with what the file says of its licence.
        dtype: of the weights; float32 keeps the dequantised values exactly.

    Raises:
        FileNotFoundError: no such file, or a part of it is missing.
        ValueError: a damaged file; an architecture, tensor, key or kind of tokenizer that is not
            known; a key that is missing or has no value that makes sense.
        FileExistsError: the folder is there already.
    """
    file, folder = Path(file), Path(folder)
    require_new(folder)
    source = read_gguf(file)
    config = make_config(source)
    architecture = ARCHITECTURES[source.metadata.text("general.architecture")]
    names = _names_of_tensors(source, architecture, config)
    tokenizer = make_tokenizer(source, config["vocab_size"])
    passed_over = _refuse_unread(source)
    # The families' own defaults may lie beyond this vocabulary.
    config |= {"pad_token_id": None} | tokenizer.ids
    with new_folder(folder, "The checkpoint") as new:
        _write_json(new / "config.json", config)
        write_shards(new, _published_tensors(source, architecture, config, names, dtype))
        tokenizer.tokenizer.save(str(new / "tokenizer.json"))
        length = {"model_max_length": config["max_position_embeddings"]}
        _write_json(new / "tokenizer_config.json", tokenizer.settings | length)
        _write_json(new / "generation_config.json", tokenizer.ids)
        (new / "README.md").write_text(_readme(source, passed_over), encoding="utf-8")


def make_config(source: GGUFFile) -> dict[str, Any]:
    """config.json of what a GGUF file holds, without the ids of special tokens.

    Raises:
        ValueError: an unknown architecture, a missing key, or a value that makes no sense.
    """
    metadata = source.metadata
    kind = metadata.text("general.type", "model")
    name = metadata.text("general.architecture")
    if kind != "model":
        raise ValueError(f"{source.path} holds a {kind!r}, not a model.")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{source.path}: the architecture {name!r} is not known; known: "
            f"{', '.join(ARCHITECTURES)}."
        )
    if "token_embd.weight" not in source.tensors:
        raise ValueError(f"{source.path} has no tensor token_embd.weight: it holds no weights.")
    heads = metadata.whole(f"{name}.attention.head_count")
    hidden = metadata.whole(f"{name}.embedding_length")
    size = metadata.whole(f"{name}.attention.key_length", None)
    if size is None and hidden % heads:
        raise ValueError(
            f"{source.path}: {name}.embedding_length = {hidden} is no multiple of "
            f"{name}.attention.head_count = {heads}, and {name}.attention.key_length is not there."
        )
    config = {
        "model_type": ARCHITECTURES[name].model_type,
        "vocab_size": source.shape("token_embd.weight")[0],
        "hidden_size": hidden,
        "intermediate_size": metadata.whole(f"{name}.feed_forward_length"),
        "num_hidden_layers": _layers(source, f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.whole(f"{name}.attention.head_count_kv", heads),
        "head_dim": size or hidden // heads,
        "max_position_embeddings": metadata.whole(f"{name}.context_length"),
        "rms_norm_eps": metadata.number(f"{name}.attention.layer_norm_rms_epsilon", high=0.1),
        "rope_theta": metadata.number(f"{name}.rope.freq_base", 10000.0, low=1.0),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "hidden_act": "silu",
    }
    _require(source, f"{name}.attention.value_length", config["head_dim"])
    config = ARCHITECTURES[name].finish(source, name, config)
    try:
        family_of(config["model_type"]).parse_config(config)
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from error
    return config


def _layers(source: GGUFFile, key: str) -> int:
    """The number of blocks; compared with the tensors first, as the config is made for each."""
    layers = source.metadata.whole(key)
    blocks = {name.split(".")[1] for name in source.tensors if name.startswith("blk.")}
    if len(blocks) != layers:
        raise ValueError(
            f"{source.path}: {key} is {layers}, and there are tensors of {len(blocks)} blocks "
            "(blk.N.*)."
        )
    return layers


def _require(source: GGUFFile, key: str, value: int) -> None:
    found = source.metadata.whole(key, value)
    if found != value:
        raise ValueError(f"{source.path}: {key} is {found}; only {value} can be imported here.")


def _rope_scaling(source: GGUFFile, name: str) -> dict[str, Any]:
    """`rope_scaling` of config.json, if there is any."""
    metadata, scaling = source.metadata, f"{name}.rope.scaling"
    kind = metadata.text(f"{scaling}.type", None)
    factor = metadata.number(f"{scaling}.factor", None)
    # The older name, from before there were other kinds.
    factor = factor or metadata.number(f"{name}.rope.scale_linear", None)
    original = metadata.whole(f"{scaling}.original_context_length", None)
    magnitude = metadata.number(f"{scaling}.yarn_attn_factor", 1.0)
    fast = metadata.number(f"{scaling}.yarn_beta_fast", None)
    slow = metadata.number(f"{scaling}.yarn_beta_slow", None)
    kind = kind or ("linear" if factor else "none")
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return {}
    if kind not in ("linear", "yarn") or factor is None:
        raise ValueError(
            f"{source.path}: {scaling}.type = {kind!r} with {scaling}.factor = {factor}; linear "
            "and yarn, each with a factor, can be imported."
        )
    parameters = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        parameters |= {"original_max_position_embeddings": original}
        parameters |= {"beta_fast": fast, "beta_slow": slow}
        if magnitude != 1.0:
            parameters["attention_factor"] = magnitude * (0.1 * math.log(factor) + 1.0)
    return {"rope_scaling": {k: v for k, v in parameters.items() if v is not None}}


def _finish_llama(source: GGUFFile, name: str, config: dict) -> dict:
    _require(source, f"{name}.rope.dimension_count", config["head_dim"])
    config |= _rope_scaling(source, name)
    config["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in source.tensors
    if "rope_freqs.weight" in source.tensors:
        divisors = source.read("rope_freqs.weight")
        if "rope_scaling" in config and (divisors != 1.0).any():
            raise ValueError(f"{source.path} has both rope_freqs.weight and {name}.rope.scaling.")
        config |= _llama3_scaling(source, config, divisors)
    return config


def _finish_qwen(source: GGUFFile, name: str, config: dict) -> dict:
    _require(source, f"{name}.rope.dimension_count", config["head_dim"])
    config |= _rope_scaling(source, name)
    if config["model_type"] == "qwen3":
        config["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
    return config


def _finish_gemma(source: GGUFFile, name: str, config: dict) -> dict:
    _require(source, f"{name}.rope.dimension_count", config["head_dim"])
    config |= _rope_scaling(source, name)
    return config | {"hidden_act": "gelu_pytorch_tanh", "attention_bias": False}


def _finish_gemma2(source: GGUFFile, name: str, config: dict) -> dict:
    metadata = source.metadata
    config = _gemma_scale(_finish_gemma(source, name, config), layers_of_27b=46)
    # What a file does not say has these values, for llama.cpp as for the reference.
    return config | {
        "sliding_window": metadata.whole(f"{name}.attention.sliding_window", 4096),
        "attn_logit_softcapping": metadata.number(f"{name}.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number(f"{name}.final_logit_softcapping", 30.0),
    }


def _finish_gemma3(source: GGUFFile, name: str, config: dict) -> dict:
    metadata, pattern = source.metadata, f"{name}.attention.sliding_window_pattern"
    # The reference's base is another than the one that other architectures have without a word.
    metadata.number(f"{name}.rope.freq_base", low=1.0)
    config = _gemma_scale(_finish_gemma(source, name, config), layers_of_27b=62)
    config |= {
        "sliding_window": metadata.whole(f"{name}.attention.sliding_window"),
        "rope_local_base_freq": metadata.number(f"{name}.rope.freq_base_swa", 10000.0, low=1.0),
        "final_logit_softcapping": metadata.number(f"{name}.final_logit_softcapping", None),
    }
    if not metadata.has_list(pattern):
        return config | {"sliding_window_pattern": metadata.whole(pattern, 6)}
    kinds = [("full_attention", "sliding_attention")[flag] for flag in metadata.flags(pattern)]
    return config | {"layer_types": kinds}


def _gemma_scale(config: dict, layers_of_27b: int) -> dict:
    """The scale of attention, which no file says: the 27B networks alone have another."""
    size = config["head_dim"]
    if config["num_hidden_layers"] == layers_of_27b:
        size = config["hidden_size"] // config["num_attention_heads"]
    activation = {"hidden_activation": config.pop("hidden_act"), "query_pre_attn_scalar": size}
    return config | activation


def _finish_phi3(source: GGUFFile, name: str, config: dict) -> dict:
    metadata, head = source.metadata, config["head_dim"]
    rotated = metadata.whole(f"{name}.rope.dimension_count", head, high=head)
    length = config["max_position_embeddings"]
    original = metadata.whole(f"{name}.rope.scaling.original_context_length", length)
    config |= {
        "original_max_position_embeddings": original,
        "partial_rotary_factor": rotated / head,
        # 0 says that there is none; older files do not say anything.
        "sliding_window": metadata.whole(f"{name}.attention.sliding_window", 0, low=0) or None,
    }
    factors = {
        f"{kind}_factor": source.read(f"rope_factors_{kind}.weight").ravel().tolist()
        for kind in ("short", "long")
        if f"rope_factors_{kind}.weight" in source.tensors
    }
    if len(factors) == 1:
        raise ValueError(f"{source.path} has one of rope_factors_short and rope_factors_long only.")
    magnitude = metadata.number(f"{name}.rope.scaling.attn_factor", None)
    if factors:
        factors |= {} if magnitude is None else {"attention_factor": magnitude}
        config["rope_scaling"] = {"rope_type": "longrope", **factors}
    return config


ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        BLOCK,
        _finish_llama,
        biases=lambda source: (
            *((*QKV, "attn_output") if "blk.0.attn_q.bias" in source.tensors else ()),
            *(("ffn_gate", "ffn_up", "ffn_down") if "blk.0.ffn_up.bias" in source.tensors else ()),
        ),
        interleaved=True,
    ),
    "qwen2": Architecture("qwen2", BLOCK, _finish_qwen, biases=lambda source: QKV),
    "qwen3": Architecture(
        "qwen3",
        BLOCK | HEAD_NORMS,
        _finish_qwen,
        biases=lambda source: (
            (*QKV, "attn_output") if "blk.0.attn_q.bias" in source.tensors else ()
        ),
    ),
    "phi3": Architecture("phi3", PHI3, _finish_phi3),
    "gemma": Architecture("gemma", BLOCK, _finish_gemma, norms_from_one=True),
    "gemma2": Architecture("gemma2", SANDWICH, _finish_gemma2, norms_from_one=True),
    "gemma3": Architecture(
        "gemma3_text", SANDWICH | HEAD_NORMS, _finish_gemma3, norms_from_one=True
    ),
}


def _refuse_unread(source: GGUFFile) -> list[str]:
    """The keys that were passed over; refuses those whose meaning is not known."""
    name = source.metadata.text("general.architecture")
    neutral = {k if k.startswith("tokenizer.") else f"{name}.{k}": v for k, v in NEUTRAL.items()}
    return source.metadata.refuse_unread((f"{name}.", *NAMESPACES), HARMLESS, neutral)


def _names_of_tensors(source: GGUFFile, architecture: Architecture, config: dict) -> dict[str, str]:
    """GGUF's name -> published name, of exactly the tensors that the network has.

    Raises:
        ValueError: lists those that are missing, unknown or of another shape.
    """
    layers = config["num_hidden_layers"]
    sizes = _sizes(config)
    expected = {}
    biases = architecture.biases(source)
    tops = {k: v for k, v in TOP.items() if k != "output" or not config["tie_word_embeddings"]}
    every = [("", "", tops)]
    every += [(f"blk.{n}.", f"model.layers.{n}.", architecture.block) for n in range(layers)]
    for theirs, ours, table in every:
        for name, (published, shape) in table.items():
            shape = tuple(sizes[size] for size in shape)
            expected[f"{theirs}{name}.weight"] = f"{ours}{published}.weight", shape
            if name in biases:
                expected[f"{theirs}{name}.bias"] = f"{ours}{published}.bias", shape[:1]
    surplus = source.tensors.keys() - expected.keys() - _derived(architecture)
    problems = [f"{name} is missing" for name in expected if name not in source.tensors]
    problems += [f"{name} is not known" for name in sorted(surplus)]
    problems += [
        f"{name} is {list(source.shape(name))}, expected {list(shape)}"
        for name, (_, shape) in expected.items()
        if name in source.tensors and source.shape(name) != shape
    ]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{source.path} does not hold the {architecture.model_type} network that its keys "
            f"describe: {'; '.join(problems[:10])}{more}."
        )
    return {name: published for name, (published, _) in expected.items()}


def _sizes(config: dict) -> dict[str, int]:
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    wide = config["intermediate_size"]
    return {
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "head": config["head_dim"],
        "query": query,
        "key": key,
        "query, key, value": query + 2 * key,
        "wide": wide,
        "gate, up": 2 * wide,
    }


def _derived(architecture: Architecture) -> set[str]:
    """Tensors that became fields of config.json."""
    return {
        "llama": {"rope_freqs.weight"},
        "phi3": {"rope_factors_short.weight", "rope_factors_long.weight"},
    }.get(architecture.model_type, set())


def _published_tensors(
    source: GGUFFile, architecture: Architecture, config: dict, names: dict[str, str], dtype: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by their published names, as they were before conversion."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, published in names.items():
        value = source.read(name)
        part = name.split(".")[-2]
        if architecture.interleaved and part in heads:
            value = _unpermuted(value, heads[part])
        if architecture.norms_from_one and part.endswith("norm"):
            value = value - 1.0
        yield published, value.astype(dtype)


def _unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama query or key projection back in the order of rotate-half embeddings."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _llama3_scaling(source: GGUFFile, config: dict, divisors: np.ndarray) -> dict[str, Any]:
    """The rope scaling of Llama 3.1 and later, which GGUF stores as one divisor per frequency.

    Raises:
        ValueError: the divisors are not those of any known scaling.
    """
    if (divisors == 1.0).all():
        return {}
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    count = config["head_dim"] // 2
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(count) / count)
    smooth = (8192 / wavelength - 1.0) / 3.0
    expected = np.where(
        wavelength > 8192,
        scaling["factor"],
        np.where(wavelength < 2048, 1.0, 1 / ((1 - smooth) / scaling["factor"] + smooth)),
    )
    if divisors.shape != (count,) or not np.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(
            f"{source.path}: rope_freqs.weight is not the scaling of Llama 3 (one divisor for each "
            f"of {count} frequencies, for an original context of 8,192)."
        )
    return {"rope_scaling": scaling}


def _readme(source: GGUFFile, passed_over: list[str]) -> str:
    lines = [f"Imported from {source.path.name}; what the file says of itself:", ""]
    for name, value in source.metadata:
        if name.startswith("general.") and isinstance(value, str | int | float):
            lines.append(f"- {name.removeprefix('general.')}: {value}")
    others = [key for key in passed_over if not key.startswith("general.")]
    if others:
        lines += ["", f"Keys that were passed over: {', '.join(others)}."]
    return "\n".join(lines) + "\n"


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
