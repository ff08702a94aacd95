"""DINOv2 backbones inside ONNX files, as checkpoint folders.

An exporter keeps the names of biases, norms and embeddings, folds the transposed kernels of dense
layers into the graph without a name, and leaves out what inference does not need (`mask_token`).
The kernels are found by following the graph: the matrix product whose result the named bias is
added to.
"""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.files import write_json_atomically
from ftjax.pretrained.export import write_shards

PREFIX = "backbone."
HEAD_DIM = 64
"""In every published size of DINOv2; a graph does not say it in so many words."""


def import_onnx(file: str | Path, folder: str | Path, *, dtype: Any = np.float32) -> None:
    """Writes a checkpoint folder of a DINOv2 backbone, whole or not at all.

    Args:
        file: the ONNX file, whose initializers under `backbone.` have transformers' names.
        folder: to be made: config.json, model.safetensors and README.md.
        dtype: of the weights.

    Raises:
        ImportError: the extra is not installed.
        ValueError: a damaged file, weights in other files, or no such backbone in it.
        FileExistsError: the folder is there already.
    """
    file, folder = Path(file), Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another or delete it.")
    graph = _opened(file).graph
    tensors = _tensors(file, graph)
    config = _config(file, tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "content"
        new.mkdir()
        write_json_atomically(new / "config.json", config)
        write_shards(new, ((name, tensor.astype(dtype)) for name, tensor in tensors.items()))
        text = f"Imported from {file.name}, which does not state the licence of the weights.\n"
        (new / "README.md").write_text(text, encoding="utf-8")
        os.replace(new, folder)


def _opened(file: Path):
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("Reading ONNX files needs the extra: pip install 'ftjax[onnx]'.")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{file} is damaged or no ONNX file ({error}); get it again.") from error
    outside = [t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL]
    if outside:
        raise ValueError(
            f"{file}: the weights are in other files ({outside[0]} and {len(outside) - 1} more). "
            "Save them in one: onnx.save(onnx.load(path), new_path)."
        )
    return model


def _tensors(file: Path, graph) -> dict[str, np.ndarray]:
    """Published name -> tensor in torch's layout."""
    from onnx import numpy_helper

    values = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    tensors = {
        name.removeprefix(PREFIX): numpy_helper.to_array(tensor)
        for name, tensor in values.items()
        if name.startswith(PREFIX)
    }
    if "embeddings.cls_token" not in tensors:
        raise ValueError(
            f"{file} holds no DINOv2 backbone: there is no {PREFIX}embeddings.cls_token among its "
            f"{len(values)} initializers."
        )
    for node in graph.node:
        for bias in (name for name in node.input if node.op_type == "Add"):
            weight = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
            if bias.removeprefix(PREFIX) not in tensors or weight in tensors:
                continue
            products = [made_by[name] for name in node.input if name in made_by]
            kernels = [
                values[name]
                for product in products
                if product.op_type == "MatMul"
                for name in product.input
                if name in values
            ]
            if len(kernels) == 1:
                tensors[weight] = numpy_helper.to_array(kernels[0]).T
    if "embeddings.position_embeddings" not in tensors:
        tensors["embeddings.position_embeddings"] = _positions(file, graph, values)
    return tensors


def _positions(file: Path, graph, values: dict) -> np.ndarray:
    """[1, 1 + patches, hidden]: the graph holds the class token's apart, to resize the others."""
    from onnx import numpy_helper

    used = {
        name
        for node in graph.node
        if node.name.startswith("/backbone/embeddings/")
        for name in node.input
        if name in values and not name.startswith(PREFIX)
    }
    tables = [numpy_helper.to_array(values[name]) for name in sorted(used)]
    tables = [table for table in tables if table.ndim == 3 and table.shape[0] == 1]
    tables.sort(key=lambda table: table.shape[1])
    if len(tables) != 2 or tables[0].shape[1] != 1:
        shapes = ", ".join(str(table.shape) for table in tables) or "none"
        raise ValueError(f"{file}: the position embeddings were not found (candidates: {shapes}).")
    return np.concatenate(tables, axis=1)


def _config(file: Path, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    hidden = tensors["embeddings.cls_token"].shape[-1]
    patch = tensors["embeddings.patch_embeddings.projection.weight"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    patches = tensors["embeddings.position_embeddings"].shape[1] - 1
    side = round(patches**0.5)
    if side**2 != patches or hidden % HEAD_DIM:
        raise ValueError(
            f"{file}: {patches} positions of {hidden} features are no DINOv2, whose patches form a "
            f"square and whose heads have {HEAD_DIM} features."
        )
    swiglu = "encoder.layer.0.mlp.weights_in.bias" in tensors
    config = {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": hidden // HEAD_DIM,
        "image_size": side * patch[-1],
        "patch_size": patch[-1],
        "num_channels": patch[1],
        "use_swiglu_ffn": swiglu,
        "dtype": "float32",
    }
    if not swiglu:
        config["mlp_ratio"] = tensors["encoder.layer.0.mlp.fc1.bias"].size // hidden
    missing = [
        name
        for name in (n.removesuffix("bias") + "weight" for n in tensors if n.endswith(".bias"))
        if name not in tensors
    ]
    if missing:
        raise ValueError(f"{file}: the graph does not lead to {', '.join(missing[:5])}.")
    return config
