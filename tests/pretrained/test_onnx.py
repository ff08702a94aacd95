"""A tiny DINOv2 inside an ONNX graph, written by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.load import load_model
from ftjax.pretrained.onnx import import_onnx

HIDDEN, PATCHES = 64, 4
DENSE = {
    "attention.attention.query": (64, 64),
    "attention.attention.key": (64, 64),
    "attention.attention.value": (64, 64),
    "attention.output.dense": (64, 64),
    "mlp.fc1": (64, 128),
    "mlp.fc2": (128, 64),
}


def build(**changes):
    """The model and its published tensors; `changes` replace initializers, or drop them."""
    random = np.random.default_rng(0)

    def values(*shape):
        return random.normal(size=shape).astype(np.float32)

    published = {
        "embeddings.cls_token": values(1, 1, HIDDEN),
        "embeddings.patch_embeddings.projection.weight": values(HIDDEN, 3, 2, 2),
        "embeddings.patch_embeddings.projection.bias": values(HIDDEN),
        "layernorm.weight": values(HIDDEN),
        "layernorm.bias": values(HIDDEN),
    }
    layer = "encoder.layer.0."
    for name in ("norm1", "norm2"):
        published |= {f"{layer}{name}.{leaf}": values(HIDDEN) for leaf in ("weight", "bias")}
    for name in ("layer_scale1", "layer_scale2"):
        published[f"{layer}{name}.lambda1"] = values(HIDDEN)
    initializers = {f"backbone.{name}": value for name, value in published.items()}
    initializers |= {
        "onnx::Concat_1": values(1, 1, HIDDEN),
        "onnx::Reshape_2": values(1, PATCHES, HIDDEN),
    }
    published["embeddings.position_embeddings"] = np.concatenate(
        [initializers["onnx::Concat_1"], initializers["onnx::Reshape_2"]], 1
    )
    nodes = [
        helper.make_node(
            "Concat",
            ["onnx::Concat_1", "onnx::Reshape_2"],
            ["positions"],
            name="/backbone/embeddings/Concat",
            axis=1,
        )
    ]
    for number, (name, shape) in enumerate(DENSE.items()):
        kernel, bias = values(*shape), values(shape[1])
        initializers |= {f"onnx::MatMul_{number}": kernel, f"backbone.{layer}{name}.bias": bias}
        published |= {f"{layer}{name}.weight": kernel.T, f"{layer}{name}.bias": bias}
        nodes += [
            helper.make_node("MatMul", [f"x{number}", f"onnx::MatMul_{number}"], [f"p{number}"]),
            # Either order of the sum is written by exporters.
            helper.make_node(
                "Add",
                [f"backbone.{layer}{name}.bias", f"p{number}"][:: (-1) ** number],
                [f"y{number}"],
            ),
        ]
    initializers |= changes
    tensors = [numpy_helper.from_array(v, n) for n, v in initializers.items() if v is not None]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
    graph = helper.make_graph(nodes, "tiny", [image], [image], initializer=tensors)
    return helper.make_model(graph), published


def test_the_folder_has_every_tensor_under_its_published_name(tmp_path):
    model, published = build()
    onnx.save(model, tmp_path / "tiny.onnx")
    import_onnx(tmp_path / "tiny.onnx", tmp_path / "folder")
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "folder" / "model.safetensors")
    assert found.keys() == published.keys()
    for name, value in published.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    network = load_model(tmp_path / "folder")
    assert network.config.num_attention_heads == 1
    assert network.config.image_size == 4
    assert network.config.mlp_ratio == 2


def test_a_reference_may_be_such_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    onnx.save(build()[0], tmp_path / "tiny.onnx")
    folder = checkpoint_folder(str(tmp_path / "tiny.onnx"))
    assert (folder / "config.json").exists()
    assert checkpoint_folder(str(tmp_path / "tiny.onnx")) == folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.embeddings.cls_token": None}, "holds no DINOv2 backbone"),
        ({"onnx::MatMul_4": None}, r"does not lead to encoder\.layer\.0\.mlp\.fc1\.weight"),
        ({"onnx::Reshape_2": None}, "position embeddings were not found"),
        ({"onnx::Reshape_2": np.zeros((1, 5, HIDDEN), np.float32)}, "5 positions .* no DINOv2"),
    ],
)
def test_what_is_missing_is_named(tmp_path, changes, message):
    onnx.save(build(**changes)[0], tmp_path / "tiny.onnx")
    with pytest.raises(ValueError, match=message):
        import_onnx(tmp_path / "tiny.onnx", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_damaged_and_divided_files(tmp_path):
    data = build()[0].SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        import_onnx(tmp_path / "cut.onnx", tmp_path / "folder")
    onnx.save(build()[0], tmp_path / "divided.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ValueError, match="in other files"):
        import_onnx(tmp_path / "divided.onnx", tmp_path / "folder")
