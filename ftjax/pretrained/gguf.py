"""From a GGUF file to an ordinary checkpoint folder, without torch.

The `gguf` library reads and dequantises; here tensors get their published names and layout back,
metadata becomes config.json, and the tokenizer is rebuilt as tokenizer.json. Reference: llama.cpp's
convert_hf_to_gguf.py, whose changes to the weights are undone.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from ftjax.pretrained.export import write_shards

# GGUF's architecture -> model_type.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
}

TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma has a norm before and after each half of the block.
GEMMA_NAMES = BLOCK_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

CONFIG_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
ROPE_SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
# Metadata that config.json needs no field for.
IMPLIED = ("attention.value_length", "rope.dimension_count", "vocab_size")

# How a text is cut before byte-pair merging, by GGUF's `tokenizer.ggml.pre`.
SPLITS = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
CONTROL, USER_DEFINED = 3, 4
SPACE = "\u2581"


def import_gguf(file: str | Path, folder: str | Path, *, dtype: Any = ml_dtypes.bfloat16) -> None:
    """Writes a checkpoint folder, whole or not at all.

    Args:
        file: the GGUF file.
        folder: to be made: config.json, safetensors, tokenizer.json, tokenizer_config.json,
            generation_config.json and README.md with what the file says of its licence.
        dtype: of the weights; float32 keeps the dequantised values exactly.

    Raises:
        ValueError: a damaged file, or an architecture, tensor, metadata field or kind of tokenizer
            that is not known.
        FileExistsError: the folder is there already.
    """
    file, folder = Path(file), Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another or delete it.")
    reader = _opened(file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "content"
        new.mkdir()
        config = make_config(file, metadata, reader.tensors)
        _write_json(new / "config.json", config)
        write_shards(new, _published_tensors(file, config, reader.tensors, dtype))
        _write_tokenizer(new, file, metadata)
        (new / "README.md").write_text(_readme(file, metadata), encoding="utf-8")
        os.replace(new, folder)


def make_config(file: Path, metadata: dict[str, Any], tensors: list) -> dict[str, Any]:
    """config.json of what a GGUF file holds.

    Raises:
        ValueError: an unknown architecture, or metadata whose meaning is not known.
    """
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file}: the architecture {architecture!r} is not known; known: "
            f"{', '.join(ARCHITECTURES)}."
        )
    model_type = ARCHITECTURES[architecture]
    config: dict[str, Any] = {"model_type": model_type}
    scaling = {}
    for name, value in metadata.items():
        if not name.startswith(f"{architecture}."):
            continue
        short = name.removeprefix(f"{architecture}.")
        if short in CONFIG_FIELDS:
            config[CONFIG_FIELDS[short]] = value
        elif short in ROPE_SCALING:
            scaling[ROPE_SCALING[short]] = value
        elif short not in IMPLIED:
            raise ValueError(f"{file}: the meaning of {name} = {value!r} is not known.")
    names = {tensor.name for tensor in tensors}
    config["vocab_size"] = len(metadata["tokenizer.ggml.tokens"])
    config["tie_word_embeddings"] = "output.weight" not in names
    config["rms_norm_eps"] = float(np.float32(config["rms_norm_eps"]).astype(str))
    heads = config["num_attention_heads"]
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config.setdefault("num_key_value_heads", heads)
    config["hidden_act"] = "silu"
    if model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in names
    if model_type == "gemma3_text":
        # The file does not say these; they are the same for all Gemma 3 up to 12B.
        config |= {
            "hidden_activation": config.pop("hidden_act").replace("silu", "gelu_pytorch_tanh"),
            "query_pre_attn_scalar": config["head_dim"],
            "rope_local_base_freq": 10000.0,
            "attention_bias": False,
        }
    frequencies = next((t for t in tensors if t.name == "rope_freqs.weight"), None)
    if frequencies is not None:
        scaling = _llama3_scaling(file, config, _dequantised(frequencies))
    if scaling.get("rope_type", "none") != "none":
        config["rope_scaling"] = scaling
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if token is not None:
            config[f"{ours}_token_id"] = token
    return config


def _opened(file: Path) -> gguf.GGUFReader:
    try:
        reader = gguf.GGUFReader(file)
        reader.fields["general.architecture"].contents()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file} is damaged, cut short or not a GGUF file ({error}); fetch it again."
        ) from error
    return reader


def _dequantised(tensor) -> np.ndarray:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def _published_tensors(
    file: Path, config: dict, tensors: list, dtype: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by their published names, as they were before conversion."""
    is_gemma, is_llama = config["model_type"] == "gemma3_text", config["model_type"] == "llama"
    blocks = GEMMA_NAMES if is_gemma else BLOCK_NAMES
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name)
        known = blocks if match and match[1] else TOP_NAMES
        if not match or match[2] not in known:
            raise ValueError(f"{file}: the tensor {tensor.name} is not known.")
        value = _dequantised(tensor)
        if is_llama and match[2] in heads:
            value = _unpermuted(value, heads[match[2]])
        if is_gemma and match[2].endswith("norm"):
            value = value - 1.0
        prefix = f"model.layers.{match[1]}." if match[1] else ""
        yield f"{prefix}{known[match[2]]}.{match[3]}", value.astype(dtype)


def _unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama query or key projection back in the order of rotate-half embeddings."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _llama3_scaling(file: Path, config: dict, factors: np.ndarray) -> dict[str, Any]:
    """The rope scaling of Llama 3.1 and later, which GGUF stores as one divisor per frequency.

    Raises:
        ValueError: the divisors are not those of any known scaling.
    """
    scaling = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(len(factors)) / len(factors))
    smooth = (8192 / wavelength - 1.0) / 3.0
    expected = np.where(
        wavelength > 8192,
        scaling["factor"],
        np.where(wavelength < 2048, 1.0, 1 / ((1 - smooth) / scaling["factor"] + smooth)),
    )
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ValueError(f"{file}: rope_freqs.weight is not the scaling of Llama 3.")
    return scaling


def _write_tokenizer(folder: Path, file: Path, metadata: dict[str, Any]) -> None:
    kind = metadata.get("tokenizer.ggml.model")
    builders: dict[str, Callable] = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if kind not in builders:
        raise ValueError(f"{file}: the tokenizer {kind!r} is not known; known: {list(builders)}.")
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = builders[kind](file, metadata, {token: i for i, token in enumerate(tokens)})
    types = metadata["tokenizer.ggml.token_type"]
    for group, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [t for t, kind in zip(tokens, types, strict=True) if kind == group]
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=special) for t in added])

    def named(role: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        return None if index is None else tokens[index]

    bos, eos = named("bos"), named("eos")
    if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, metadata["tokenizer.ggml.bos_token_id"])],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": named("unknown"),
        "pad_token": named("padding"),
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    _write_json(
        folder / "tokenizer_config.json", {k: v for k, v in settings.items() if v is not None}
    )
    ids = {
        f"{ours}_token_id": metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    _write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})


def _byte_level_bpe(file: Path, metadata: dict, vocabulary: dict[str, int]):
    """GPT-2's kind: bytes as letters, merges in order."""
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    cut = metadata.get("tokenizer.ggml.pre", "default")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut in SPLITS:
        split = pre_tokenizers.Split(tokenizers.Regex(SPLITS[cut]), "isolated")
        raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, raw])
    elif cut == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    elif cut in ("default", "gpt-2"):
        tokenizer.pre_tokenizer = plain
    else:
        known = ", ".join(["default", "gpt-2", "smollm", *SPLITS])
        raise ValueError(f"{file}: tokenizer.ggml.pre = {cut!r} is not known; known: {known}.")
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(file: Path, metadata: dict, vocabulary: dict[str, int]):
    """SentencePiece's kind: merges by score, unknown characters as bytes."""
    scores = metadata["tokenizer.ggml.scores"]
    found = []
    for token, index in vocabulary.items():
        pieces = [
            (vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        found += [(-scores[index], index, *piece) for piece in sorted(pieces)]
    merges = [(left, right) for *_, left, right in sorted(found, key=lambda item: item[:2])]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Replace(" ", SPACE)]
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    if prefixed:
        steps.insert(0, normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer


def _readme(file: Path, metadata: dict[str, Any]) -> str:
    lines = [f"Imported from {file.name}; what the file says of itself:", ""]
    for name, value in metadata.items():
        if name.startswith("general.") and isinstance(value, str | int | float):
            lines.append(f"- {name.removeprefix('general.')}: {value}")
    return "\n".join(lines) + "\n"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
