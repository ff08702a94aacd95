"""Tiny graphs made here, as torch exports a Dinov2Model; the graph itself is the reference."""

import json
import sys
import traceback

import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from ftjax.pretrained.checkpoint_folder import checkpoint_folder  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.pretrained.onnx import import_onnx  # noqa: E402

HIDDEN, HEADS, WIDE, LAYERS, PATCH, SIDE = 16, 4, 32, 2, 2, 3
EPSILON = 1e-4


class Exported:
    """A graph, node by node, with the names and folded weights of torch's exporter."""

    def __init__(self, norm_is_one_node):
        self.random = np.random.default_rng(0)
        self.norm_is_one_node = norm_is_one_node
        self.nodes, self.initializers = [], []

    def weight(self, name, *shape):
        """An initializer of random values."""
        value = self.random.normal(size=shape).astype(np.float32) / 2
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def constant(self, value):
        name = f"constant_{len(self.nodes)}"
        value = numpy_helper.from_array(np.asarray(value), name)
        self.nodes.append(helper.make_node("Constant", [], [name], value=value))
        return name

    def node(self, kind, *inputs, **attributes):
        name = f"{kind}_{len(self.nodes)}_output"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def norm(self, name, value):
        weight = self.weight(f"backbone.{name}.weight", HIDDEN)
        bias = self.weight(f"backbone.{name}.bias", HIDDEN)
        if self.norm_is_one_node:
            return self.node("LayerNormalization", value, weight, bias, epsilon=EPSILON)
        centred = self.node("Sub", value, self.node("ReduceMean", value, axes=[-1]))
        square = self.node("Pow", centred, self.constant(np.float32(2)))
        variance = self.node("ReduceMean", square, axes=[-1])
        root = self.node("Sqrt", self.node("Add", variance, self.constant(np.float32(EPSILON))))
        scaled = self.node("Mul", self.node("Div", centred, root), weight)
        return self.node("Add", scaled, bias)

    def dense(self, name, value, inputs, outputs):
        weight = self.weight(f"onnx::MatMul_{len(self.nodes)}", inputs, outputs)
        bias = self.weight(f"backbone.{name}.bias", outputs)
        return self.node("Add", bias, self.node("MatMul", value, weight))

    def heads(self, value):
        parts = [self.constant(np.array([n], np.int64)) for n in (1, -1, HEADS, HIDDEN // HEADS)]
        value = self.node("Reshape", value, self.node("Concat", *parts, axis=0))
        return self.node("Transpose", value, perm=[0, 2, 1, 3])

    def block(self, number, value):
        name = f"encoder.layer.{number}"
        inside = self.norm(f"{name}.norm1", value)
        key, content, query = (
            self.heads(self.dense(f"{name}.attention.attention.{part}", inside, HIDDEN, HIDDEN))
            for part in ("key", "value", "query")
        )
        scores = self.node("MatMul", query, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self.node("Mul", scores, self.constant(np.float32((HIDDEN // HEADS) ** -0.5)))
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), content)
        mixed = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = self.node("Reshape", mixed, self.constant(np.array([1, -1, HIDDEN])))
        mixed = self.dense(f"{name}.attention.output.dense", mixed, HIDDEN, HIDDEN)
        scale = self.weight(f"backbone.{name}.layer_scale1.lambda1", HIDDEN)
        value = self.node("Add", self.node("Mul", mixed, scale), value)
        wide = self.dense(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", value), HIDDEN, WIDE)
        erf = self.node("Erf", self.node("Div", wide, self.constant(np.float32(np.sqrt(2)))))
        erf = self.node("Add", erf, self.constant(np.float32(1)))
        wide = self.node("Mul", self.node("Mul", wide, erf), self.constant(np.float32(0.5)))
        wide = self.dense(f"{name}.mlp.fc2", wide, WIDE, HIDDEN)
        scale = self.weight(f"backbone.{name}.layer_scale2.lambda1", HIDDEN)
        return self.node("Add", self.node("Mul", wide, scale), value)

    def model(self):
        """Image [1, 3, height, width] -> states [1, 1 + patches, hidden] and their mean."""
        place = "backbone.embeddings"
        projection = self.node(
            "Conv",
            "image",
            self.weight(f"{place}.patch_embeddings.projection.weight", HIDDEN, 3, PATCH, PATCH),
            self.weight(f"{place}.patch_embeddings.projection.bias", HIDDEN),
            strides=[PATCH, PATCH],
        )
        flat = self.node("Reshape", projection, self.constant(np.array([1, HIDDEN, -1])))
        patches = self.node("Transpose", flat, perm=[0, 2, 1])
        first = self.node(
            "Expand",
            self.weight(f"{place}.cls_token", 1, 1, HIDDEN),
            self.constant(np.array([1, 1, HIDDEN])),
        )
        tokens = self.node("Concat", first, patches, axis=1)
        length = self.node("Gather", self.node("Shape", tokens), self.constant(np.array([1])))
        length = self.node("Sub", length, self.constant(np.array([1])))
        size = self.node(
            "Concat",
            self.constant(np.array([1])),
            length,
            self.constant(np.array([HIDDEN])),
            axis=0,
        )
        rest = self.node("Reshape", self.weight("onnx::Reshape_1", 1, SIDE**2, HIDDEN), size)
        positions = self.node("Concat", self.weight("onnx::Concat_2", 1, 1, HIDDEN), rest, axis=1)
        value = self.node("Add", tokens, positions)
        for number in range(LAYERS):
            value = self.block(number, value)
        value = self.norm("layernorm", value)
        mean = self.node("ReduceMean", value, axes=[1])
        pixels, tokens = SIDE * PATCH, 1 + SIDE**2
        graph = helper.make_graph(
            self.nodes,
            "exported",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, pixels, pixels])],
            [
                helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, tokens, HIDDEN]),
                helper.make_tensor_value_info(mean, TensorProto.FLOAT, [1, 1, HIDDEN]),
            ],
            self.initializers,
        )
        return helper.make_model(
            graph, producer_name="pytorch", opset_imports=[helper.make_opsetid("", 17)]
        )


@pytest.fixture
def model():
    return Exported(norm_is_one_node=False).model()


def saved(model, folder):
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def renamed(model, old, new):
    """The model with another name for an initializer."""
    for tensor in model.graph.initializer:
        if tensor.name == old:
            tensor.name = new
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    return model


@pytest.mark.parametrize("norm_is_one_node", [False, True])
def test_the_network_computes_what_the_graph_computes(tmp_path, norm_is_one_node):
    model = Exported(norm_is_one_node).model()
    import_onnx(saved(model, tmp_path), tmp_path / "out", dtype=np.float32)
    config = json.loads((tmp_path / "out/config.json").read_text())
    expected = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "mlp_ratio": 2,
        "layer_norm_eps": EPSILON,
        "image_size": SIDE * PATCH,
        "patch_size": PATCH,
    }
    assert {name: config[name] for name in expected} == expected

    image = np.random.default_rng(1).normal(size=(1, 3, SIDE * PATCH, SIDE * PATCH))
    image = image.astype(np.float32)
    states, _ = ReferenceEvaluator(model).run(None, {"image": image})
    network = load_model(tmp_path / "out")
    ours = network(jnp.asarray(image.transpose(0, 2, 3, 1))).last_hidden_state
    np.testing.assert_allclose(ours, states, rtol=1e-4, atol=1e-4)


def test_the_folder_has_the_type_asked_for_and_what_the_file_says(tmp_path, model):
    import_onnx(saved(model, tmp_path), tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    assert "producer: pytorch" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(FileExistsError, match="is there already"):
        import_onnx(tmp_path / "model.onnx", tmp_path / "out")


def test_a_reference_to_an_onnx_file_is_imported_into_the_cache(tmp_path, model, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    folder = checkpoint_folder(str(saved(model, tmp_path)))
    assert checkpoint_folder(str(tmp_path / "model.onnx")) == folder
    load_model(folder)


def test_a_weight_that_is_not_stored_is_named(tmp_path, model):
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::MatMul"):
            # As after quantisation: the product is another node's.
            node.op_type = "MatMulInteger"
            break
    message = r"belongs to backbone\.encoder\.layer\.0\.attention\.attention\.key\.bias cannot be"
    with pytest.raises(ValueError, match=message):
        import_onnx(saved(model, tmp_path), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_positions_that_are_not_stored(tmp_path, model):
    for node in model.graph.node:
        node.input[:] = ["image" if n == "onnx::Reshape_1" else n for n in node.input]
        node.input[:] = ["image" if n == "onnx::Concat_2" else n for n in node.input]
    with pytest.raises(ValueError, match="the position embeddings cannot be found"):
        import_onnx(saved(model, tmp_path), tmp_path / "out")


def test_a_class_token_without_its_name(tmp_path, model):
    path = saved(renamed(model, "backbone.embeddings.cls_token", "lost"), tmp_path)
    with pytest.raises(ValueError, match=r"backbone\.embeddings\.cls_token cannot be found"):
        import_onnx(path, tmp_path / "out")


def test_no_backbone(tmp_path, model):
    for tensor in list(model.graph.initializer):
        renamed(model, tensor.name, tensor.name.replace("backbone.", "encoder."))
    with pytest.raises(ValueError, match=r"no initializers under 'backbone\.' \(it has encoder\."):
        import_onnx(saved(model, tmp_path), tmp_path / "out")


def test_another_activation(tmp_path, model):
    for node in model.graph.node:
        if node.op_type == "Erf":
            node.op_type = "Tanh"
    with pytest.raises(ValueError, match=r"activation GELU .* cannot be found"):
        import_onnx(saved(model, tmp_path), tmp_path / "out")


def test_weights_in_another_file(tmp_path, model):
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ValueError, match=r"in another file \(weights\.bin\)\. Make one file"):
        import_onnx(path, tmp_path / "out")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_cut_short_leaves_nothing(tmp_path, model, kept):
    path = saved(model, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="damaged, cut short or not an ONNX file"):
        import_onnx(path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def initializer(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def a_loop(model):
    """The class token's join takes itself, and nothing is added to it."""
    join = next(n for n in model.graph.node if n.op_type == "Concat" and len(n.input) == 2)
    for node in model.graph.node:
        if node.op_type == "Add" and join.output[0] in node.input:
            node.op_type = "Sub"
    join.input.append(join.output[0])


def a_loop_of_positions(model):
    for node in model.graph.node:
        if "onnx::Concat_2" in node.input:
            node.input[:] = [node.output[0], *node.input]


def nan(model):
    name = "backbone.layernorm.bias"
    tensor = numpy_helper.from_array(np.full(HIDDEN, np.nan, np.float32), name)
    initializer(model, name).CopyFrom(tensor)


def announced(model):
    initializer(model, "backbone.layernorm.bias").dims[0] = 2**60


def short(model):
    initializer(model, "backbone.layernorm.bias").dims[0] = HIDDEN + 1


def negative(model):
    initializer(model, "backbone.layernorm.bias").dims[0] = -1


def flat(model):
    name = "backbone.embeddings.patch_embeddings.projection.weight"
    tensor = numpy_helper.from_array(np.ones(HIDDEN, np.float32), name)
    initializer(model, name).CopyFrom(tensor)


def no_heads(model):
    for node in model.graph.node:
        if node.op_type == "Constant" and numpy_helper.to_array(node.attribute[0].t).size == 1:
            value = numpy_helper.to_array(node.attribute[0].t)
            if value.dtype == np.int64 and value.ravel()[0] == HEADS:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([0], np.int64)))


FAULTS = [a_loop, a_loop_of_positions, nan, announced, short, negative, flat, no_heads]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_graph_is_one_sentence(tmp_path, model, fault):
    """Or, where what is wrong takes no part, the same network."""
    import_onnx(saved(model, tmp_path), tmp_path / "whole", dtype=np.float32)
    fault(model)
    path = saved(model, tmp_path)
    try:
        import_onnx(path, tmp_path / "out", dtype=np.float32)
    except ValueError as error:
        assert str(error).startswith(str(path))
        frame = traceback.extract_tb(error.__traceback__)[-1]
        assert "ftjax" in frame.filename
    else:
        files = [tmp_path / name / "model.safetensors" for name in ("whole", "out")]
        assert fault is a_loop_of_positions
        assert files[0].read_bytes() == files[1].read_bytes()


def test_without_the_onnx_package(tmp_path, model, monkeypatch):
    path = saved(model, tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'ftjax\[onnx\]'"):
        import_onnx(path, tmp_path / "out")
