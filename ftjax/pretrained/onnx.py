"""From an ONNX graph with a DINOv2 backbone to an ordinary checkpoint folder, without torch.

An exporter keeps the published names of most parameters (`backbone.encoder.layer.0.norm1.weight`),
but folds the transpose into the weights of dense layers and cuts the positions in two, which then
have made-up names (`onnx::MatMul_1966`). These are found by following the graph from a parameter
that has kept its name: the bias that is added to a product, the class token that positions are
added to. What config.json says is read off the graph in the same way.

Reference: transformers' `Dinov2Model`, whose names the folder has.
"""

import contextlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ftjax.files import new_folder, require_new
from ftjax.models import family_of
from ftjax.pretrained.export import write_shards

PREFIX = "backbone."
CLASS_TOKEN = "embeddings.cls_token"
PATCHES = "embeddings.patch_embeddings.projection.weight"


def import_onnx(file: str | Path, folder: str | Path, *, dtype: Any = ml_dtypes.bfloat16) -> None:
    """Writes a checkpoint folder of the graph's DINOv2 backbone, whole or not at all.

    What the graph computes beyond the backbone is left behind. How images are to be normalised is
    not part of a graph, so no preprocessor_config.json is written.

    Args:
        file: the ONNX file, its initializers under `backbone.` and in the file itself.
        folder: to be made: config.json, safetensors and README.md with what the file says of
            itself.
        dtype: of the weights.

    Raises:
        ImportError: the `onnx` package is not installed.
        ValueError: a damaged file, weights in other files, no DINOv2 backbone, or a weight or
            setting that is not found in the graph.
        FileExistsError: the folder is there already.
    """
    file, folder = Path(file), Path(folder)
    require_new(folder)
    model = open_onnx(file)
    with errors_name(file):
        graph = Graph(file, model)
        tensors = _published_tensors(graph)
        config = _config(graph, tensors)
        family_of("dinov2").parse_config(config)
    with new_folder(folder, "The checkpoint") as new:
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_shards(new, ((name, value.astype(dtype)) for name, value in tensors.items()))
        (new / "README.md").write_text(_readme(file, model), encoding="utf-8")


@contextlib.contextmanager
def errors_name(file: Path) -> Iterator[None]:
    """A graph that is not what it should be in some way or other becomes one sentence."""
    try:
        yield
    except Exception as error:
        if str(file) in str(error):
            raise
        raise ValueError(
            f"{file}: the graph is damaged or not of the kind that can be imported "
            f"({type(error).__name__}: {error})."
        ) from error


def open_onnx(file: Path):
    """The model of a file, all its weights in it.

    Raises:
        ImportError: the `onnx` package is not installed.
        ValueError: a damaged file, or weights in other files.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"{file}: reading ONNX needs pip install 'ftjax[onnx]'.") from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is damaged, cut short or not an ONNX file ({error}); fetch it again."
        ) from error
    if not model.graph.node:
        raise ValueError(f"{file} is damaged, cut short or not an ONNX file: it holds no graph.")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}.get("location")
            raise ValueError(
                f"{file} keeps {tensor.name} in another file ({place}). Make one file of them: "
                "python -c \"import onnx; onnx.save(onnx.load('model.onnx'), 'whole.onnx')\""
            )
    return model


class Graph:
    """Who makes and who takes each value of an ONNX graph.

    Attributes:
        file: for messages.
        initializers: name -> stored tensor.
        producers: value name -> the node that makes it.
        consumers: value name -> the nodes that take it.
    """

    def __init__(self, file: Path, model):
        self.file = file
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {}
        self.consumers = defaultdict(list)
        for node in model.graph.node:
            for name in node.output:
                self.producers[name] = node
            for name in node.input:
                self.consumers[name].append(node)

    def tensor(self, name: str) -> np.ndarray | None:
        """The value of an initializer or of a Constant node; None for what is computed."""
        from onnx import numpy_helper

        if name in self.initializers:
            return self.initializer(name)
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    return numpy_helper.to_array(attribute.t)
        return None

    def initializer(self, name: str) -> np.ndarray:
        """A tensor that the file stores.

        Raises:
            ValueError: its shape announces more than there is.
        """
        from onnx import numpy_helper

        stored = self.initializers[name]
        # Bits are the smallest elements; what a shape announces is not yet there.
        if min(stored.dims, default=0) < 0 or math.prod(stored.dims) > 8 * stored.ByteSize():
            raise ValueError(
                f"{self.file}: {name} announces {list(stored.dims)} values in "
                f"{stored.ByteSize():,} bytes; the file is damaged."
            )
        return numpy_helper.to_array(stored)

    def taker(self, name: str, kind: str) -> Any:
        """The first node of a kind that takes a value."""
        return next((node for node in self.consumers[name] if node.op_type == kind), None)

    def not_found(self, what: str) -> ValueError:
        """The error for a part that the graph should have."""
        return ValueError(
            f"{self.file}: {what} cannot be found in the graph. It is read as torch exports a "
            "Dinov2Model; a graph that was optimised or quantised afterwards cannot be imported."
        )


def _published_tensors(graph: Graph) -> dict[str, np.ndarray]:
    """The backbone's parameters, float32, by their published names and in their layout."""
    named = [name for name in graph.initializers if name.startswith(PREFIX)]
    if not named:
        some = ", ".join(list(graph.initializers)[:3]) or "none"
        raise ValueError(
            f"{graph.file} has no initializers under {PREFIX!r} (it has {some}); only a DINOv2 "
            "backbone exported with the names of its parameters can be imported."
        )
    tensors = {name.removeprefix(PREFIX): graph.initializer(name) for name in named}
    for name in (CLASS_TOKEN, PATCHES):
        if name not in tensors:
            raise graph.not_found(f"{PREFIX}{name}")
    for name in list(tensors):
        weight = f"{name.removesuffix('.bias')}.weight"
        if name.endswith(".bias") and weight not in tensors:
            tensors[weight] = _dense_weight(graph, name)
    if "embeddings.position_embeddings" not in tensors:
        tensors["embeddings.position_embeddings"] = _positions(graph)
    for name, tensor in tensors.items():
        if tensor.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
            raise ValueError(f"{graph.file}: {PREFIX}{name} is {tensor.dtype}, not floating point.")
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise ValueError(f"{graph.file}: {PREFIX}{name} holds NaN or infinity.")
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _dense_weight(graph: Graph, bias: str) -> np.ndarray:
    """The weight [out, in] of the product that a bias is added to; the graph has [in, out]."""
    add = graph.taker(PREFIX + bias, "Add")
    for name in add.input if add is not None else ():
        product = graph.producers.get(name)
        if product is not None and product.op_type == "MatMul":
            weight = graph.tensor(product.input[1])
            if weight is not None:
                return weight.T
    raise graph.not_found(f"the weight that belongs to {PREFIX}{bias}")


def _positions(graph: Graph) -> np.ndarray:
    """[1, 1 + patches, hidden]: what is added to the class token, and to the patches."""
    # Class token -> Expand -> Concat with the patches -> Add.
    value, add, seen = PREFIX + CLASS_TOKEN, None, set()
    while add is None and value not in seen:
        seen.add(value)
        node = graph.taker(value, "Expand") or graph.taker(value, "Concat")
        if node is None:
            raise graph.not_found("what is added to the class token")
        value = node.output[0]
        add = graph.taker(value, "Add")
    if add is None:
        raise graph.not_found("what is added to the class token")
    other = next(name for name in add.input if name != value)
    hidden = graph.initializers[PREFIX + CLASS_TOKEN].dims[-1]
    # Backwards through what resizes them, in the order in which they are joined.
    found, pending, seen = [], [other], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in graph.initializers:
            tensor = graph.initializer(name)
            if tensor.ndim == 3 and tensor.shape[-1] == hidden:
                found.append(tensor)
        elif name in graph.producers and graph.producers[name].op_type != "Shape":
            pending.extend(reversed(graph.producers[name].input))
    lengths = [tensor.shape[1] for tensor in found]
    if len(found) > 2 or not found or (len(found) == 2 and lengths[0] != 1):
        raise graph.not_found("the position embeddings")
    return np.concatenate(found, axis=1)


def _config(graph: Graph, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """config.json, read off the shapes and the constants of the graph."""
    hidden, channels, patch, width = tensors[PATCHES].shape
    patches = tensors["embeddings.position_embeddings"].shape[1] - 1
    side = math.isqrt(patches)
    if patch != width or side**2 != patches:
        raise ValueError(
            f"{graph.file}: patches of {patch} x {width} and {patches} positions; only square "
            "patches and images can be imported."
        )
    layers = {m[1] for m in (re.match(r"encoder\.layer\.(\d+)\.", name) for name in tensors) if m}
    if not layers or "encoder.layer.0.mlp.fc1.bias" not in tensors:
        raise graph.not_found("backbone.encoder.layer.0.mlp.fc1.bias")
    ratio = tensors["encoder.layer.0.mlp.fc1.bias"].shape[0] / hidden
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": _heads(graph),
        # transformers takes no 4.0.
        "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        "hidden_act": _activation(graph),
        "layer_norm_eps": _epsilon(graph),
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
        "qkv_bias": True,
        # The token that pretraining masks patches with takes no part in a graph.
        "use_mask_token": False,
    }


def _heads(graph: Graph) -> int:
    """Into how many heads the keys of the first block are cut: [batch, length, heads, size]."""
    add = graph.taker(f"{PREFIX}encoder.layer.0.attention.attention.key.bias", "Add")
    reshape = graph.taker(add.output[0], "Reshape") if add is not None else None
    if reshape is not None:
        shape = graph.tensor(reshape.input[1])
        if shape is not None:
            return int(shape[-2])
        parts = graph.producers[reshape.input[1]]
        heads = graph.tensor(parts.input[-2]) if parts.op_type == "Concat" else None
        if heads is not None:
            return int(heads.item())
    raise graph.not_found("the number of attention heads")


def _activation(graph: Graph) -> str:
    """The feed-forward layer's: GELU is one node, or x / sqrt(2) -> erf."""
    add = graph.taker(f"{PREFIX}encoder.layer.0.mlp.fc1.bias", "Add")
    for node in graph.consumers[add.output[0]] if add is not None else ():
        if node.op_type == "Gelu":
            approximate = [a.s for a in node.attribute if a.name == "approximate"]
            if approximate in ([], [b"none"]):
                return "gelu"
        if any(graph.taker(name, "Erf") for name in node.output):
            return "gelu"
    raise graph.not_found("the activation GELU (the only one that is known)")


def _epsilon(graph: Graph) -> float:
    """The last norm's: an attribute of LayerNormalization, or what is added under the root."""
    weight = f"{PREFIX}layernorm.weight"
    norm, scaled = graph.taker(weight, "LayerNormalization"), graph.taker(weight, "Mul")
    epsilon = None
    if norm is not None:
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    elif scaled is not None:
        divided = graph.producers.get(next(name for name in scaled.input if name != weight))
        root = graph.producers.get(divided.input[1]) if divided is not None else None
        added = graph.producers.get(root.input[0]) if root is not None else None
        constants = [graph.tensor(name) for name in added.input] if added is not None else []
        epsilon = next((value.item() for value in constants if value is not None), None)
    if epsilon is None:
        raise graph.not_found("the epsilon of the last norm")
    # 1e-6 in float32 is written as 1e-06, not as 9.999999974752427e-07.
    return float(str(np.float32(epsilon)))


def _readme(file: Path, model) -> str:
    lines = [
        f"Imported from {file.name}: the DINOv2 backbone of an ONNX graph.",
        "",
        "The terms of use of the weights are those of where the file comes from; an ONNX file has",
        "no field for them. What the file says of itself:",
        "",
        f"- producer: {model.producer_name} {model.producer_version}".rstrip(),
    ]
    if model.doc_string:
        lines.append(f"- description: {model.doc_string}")
    lines += [f"- {entry.key}: {entry.value}" for entry in model.metadata_props]
    return "\n".join(lines) + "\n"
