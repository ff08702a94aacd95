"""From the ONNX graphs of a T5 (encoder.onnx, decoder.onnx) to an ordinary checkpoint folder.

Norms and tables keep their published names behind a prefix of the exporter's; the weights of linear
layers are found by the names of their products (`/enc/block.0/layer.0/SelfAttention/q/MatMul`).
Weights quantised by onnxruntime (`x_quantized`, `x_scale`, `x_zero_point`) are dequantised.

Reference: transformers' `T5ForConditionalGeneration`, whose names the folder has.
"""

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ftjax.files import new_folder, read_json, require_new
from ftjax.models import family_of
from ftjax.pretrained.export import write_shards
from ftjax.pretrained.onnx import Graph, errors_name, open_onnx

ENCODER, DECODER, TOKENIZER = "encoder.onnx", "decoder.onnx", "tokenizer.json"
LINEAR = (
    r"(?:.*/)?(block\.\d+/layer\.\d+/\w+/(?:q|k|v|o|wi|wi_0|wi_1|wo)|lm_head)/MatMul(?:_quant)?"
)
NAMED = (
    r"(?:.*\.)?(block\.\d+\.layer\.\d+\..+|final_layer_norm\.weight"
    r"|(?:embed_tokens|shared)\.weight)"
)
PRODUCTS = ("MatMul", "MatMulInteger")


def is_onnx_t5(folder: Path) -> bool:
    """Whether a folder holds the two graphs and the tokenizer of a T5, and no checkpoint."""
    whole = all((folder / name).is_file() for name in (ENCODER, DECODER, TOKENIZER))
    return whole and not (folder / "config.json").exists()


def import_onnx_t5(source: Path, folder: Path, *, dtype: Any = ml_dtypes.bfloat16) -> None:
    """Writes a checkpoint folder of family t5, whole or not at all.

    Args:
        source: folder with encoder.onnx, decoder.onnx and tokenizer.json.
        folder: to be made.
        dtype: of the weights.

    Raises:
        ImportError: the `onnx` package is not installed.
        ValueError: a damaged file, or a weight or setting that is not found in the graphs.
        FileExistsError: the folder is there already.
    """
    require_new(folder)
    with errors_name(source):
        encoder, decoder = (Graph(source / n, open_onnx(source / n)) for n in (ENCODER, DECODER))
        tensors = {f"encoder.{name}": value for name, value in _weights(encoder).items()}
        for name, value in _weights(decoder).items():
            tensors[name if name.startswith("lm_head") else f"decoder.{name}"] = value
        tensors = _with_one_table(source, tensors)
        config = _config(source, decoder, tensors)
        family_of("t5").parse_config(config)
    with new_folder(folder, "The checkpoint") as new:
        _write_json(new / "config.json", config)
        write_shards(new, ((name, value.astype(dtype)) for name, value in tensors.items()))
        ids = {k: config[k] for k in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
        _write_json(new / "generation_config.json", ids)
        _write_tokenizer(source / TOKENIZER, new)


def _weights(graph: Graph) -> dict[str, np.ndarray]:
    """A stack's parameters, float32, by their published names without `encoder.`."""
    found = {}
    for stored in graph.initializers:
        match = re.fullmatch(NAMED, stored.removesuffix("_quantized"))
        if match and not re.search(r"_(scale|zero_point)$", stored):
            found[match[1]] = _dequantised(graph, stored)
    for node in graph.producers.values():
        match = re.fullmatch(LINEAR, node.name)
        if match and node.op_type in PRODUCTS:
            weight = _dequantised(graph, node.input[1])
            found[f"{match[1].replace('/', '.')}.weight"] = weight.T
    return found


def _dequantised(graph: Graph, name: str) -> np.ndarray:
    value = graph.tensor(name)
    if value is None:
        raise ValueError(f"{graph.file}: the weight {name} is not stored in the graph.")
    if name.endswith("_quantized"):
        base = name.removesuffix("_quantized")
        scale, zero = graph.tensor(f"{base}_scale"), graph.tensor(f"{base}_zero_point")
        if scale is None or zero is None:
            raise ValueError(f"{graph.file} holds {name} without {base}_scale or _zero_point.")
        value = (value.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    if not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
        raise ValueError(f"{graph.file}: {name} is no weight: {value.dtype}, or NaN or infinity.")
    return value.astype(np.float32)


def _with_one_table(source: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The table of embeddings by its own name; encoder and decoder share it."""
    names = [n for n in tensors if n.endswith(("embed_tokens.weight", "shared.weight"))]
    tables = [tensors.pop(name) for name in names]
    if not tables or any(not np.array_equal(tables[0], table) for table in tables):
        raise ValueError(
            f"{source}: one table of embeddings for encoder and decoder was looked for "
            f"(embed_tokens.weight or shared.weight); {len(tables)} are there"
            f"{' and they differ' if tables else ''}."
        )
    return {"shared.weight": tables[0]} | tensors


def _config(source: Path, decoder: Graph, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """config.json, read off the shapes."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"{source}: {name} was looked for in the graphs, and is not there.")
        return tensors[name].shape

    first = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = shape(f"{first}.relative_attention_bias.weight")
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors
    wide = shape(f"encoder.block.0.layer.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight")[0]
    layers = [
        len({n.split(".")[2] for n in tensors if n.startswith(f"{stack}.block.")})
        for stack in ("encoder", "decoder")
    ]
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": shape("shared.weight")[0],
        "d_model": shape("shared.weight")[1],
        "d_kv": shape(f"{first}.q.weight")[0] // heads,
        "d_ff": wide,
        "num_heads": heads,
        "num_layers": layers[0],
        "num_decoder_layers": layers[1],
        "relative_attention_num_buckets": buckets,
        # All published T5 have these; a graph holds them as constants only.
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": _activation(decoder, gated),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _activation(decoder: Graph, gated: bool) -> str:
    kinds = {node.op_type for node in decoder.producers.values()}
    known = {(True, "Tanh"): "gated-gelu", (False, "Relu"): "relu"}
    for (is_gated, kind), name in known.items():
        if is_gated == gated and kind in kinds:
            return name
    raise ValueError(
        f"{decoder.file}: the activation of the feed-forward layers was looked for: Relu (T5 1.0), "
        "or a gated Tanh approximation of GELU (1.1, Flan); neither is there."
    )


def _write_tokenizer(file: Path, folder: Path) -> None:
    """Copies the tokenizer with truncation and padding, which belong to one use of it, off."""
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise ValueError(f"{file} is not a tokenizer's JSON object.")
    _write_json(folder / "tokenizer.json", fields | {"truncation": None, "padding": None})
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
