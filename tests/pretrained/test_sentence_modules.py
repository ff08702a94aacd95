"""Heads in sentence-transformers' layout: what is one, what is none, and what is damaged."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from ftjax.models.heads import TextClassifier
from ftjax.pretrained.load import load_model
from ftjax.pretrained.sentence_modules import read_head, with_head, write_modules

CLASSES = {"0": "b", "1": "a", "2": "c"}


@pytest.fixture
def network(tiny_bert):
    backbone = load_model(tiny_bert)
    rngs = nnx.Rngs(1)
    network = TextClassifier(backbone, 3, pooling="last", dropout_rate=0.0, rngs=rngs)
    network.classifier.bias.set_value(jax.random.normal(jax.random.key(0), (3,)))
    return network


@pytest.fixture
def folder(tmp_path, network):
    write_modules(tmp_path, network, 16)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": CLASSES}))
    return tmp_path


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_what_is_written_is_read(folder, network):
    head = read_head(folder)
    assert (head.pooling, head.classes) == ("last", ("b", "a", "c"))
    again = with_head(network.backbone, head)
    ids = np.arange(4, 12)[None]
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.testing.assert_array_equal(again(batch), network(batch))


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_every_pooling_in_both_spellings(folder, network, pooling):
    for written, expected in (
        (("pooling_mode_mean_tokens", "mean"), "mean"),
        (("pooling_mode_cls_token", "cls"), "first"),
        (("pooling_mode_lasttoken", "lasttoken"), "last"),
    ):
        if expected != pooling:
            continue
        old, new = ({written[0]: True, "include_prompt": True}, {"pooling_mode": written[1]})
        for fields in (old, new):
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(fields))
            assert read_head(folder).pooling == pooling


def test_sentence_embeddings_are_no_classifier(folder):
    dense = folder / "2_Dense" / "config.json"
    change(dense, activation_function="torch.nn.modules.activation.Tanh")
    assert read_head(folder) is None
    change(dense, activation_function="torch.nn.modules.linear.Identity")
    assert read_head(folder) is not None
    change(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    assert read_head(folder) is None
    change(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=False)
    # As many features as there are words is no sorting into classes: config.json names none.
    (folder / "config.json").write_text("{}")
    assert read_head(folder) is None
    change(folder / "config.json", id2label=CLASSES)
    modules = json.loads((folder / "modules.json").read_text())
    last = {"idx": 3, "name": "3", "path": "3_Normalize", "type": "x.Normalize"}
    (folder / "modules.json").write_text(json.dumps([*modules, last]))
    assert read_head(folder) is None


def test_damaged_files_are_named(folder):
    file = folder / "2_Dense" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "linear.bias": np.full(3, np.nan, np.float32)}, file)
    with pytest.raises(ValueError, match=r"2_Dense/model\.safetensors holds NaN or Inf"):
        read_head(folder)
    save_file({**tensors, "linear.bias": np.zeros(4, np.float32)}, file)
    with pytest.raises(ValueError, match=r"weight and bias are \(3, 16\) and \(4,\)"):
        read_head(folder)
    save_file({"linear.weight": tensors["linear.weight"]}, file)
    with pytest.raises(ValueError, match=r"has no linear\.weight and linear\.bias"):
        read_head(folder)
    file.write_bytes(b"{")
    with pytest.raises(ValueError, match=r"has no linear\.weight and linear\.bias"):
        read_head(folder)


@pytest.mark.parametrize("file", ["1_Pooling/config.json", "2_Dense/config.json", "modules.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "3", "null"])
def test_a_file_of_the_wrong_kind_is_no_head(folder, file, content):
    (folder / file).write_text(content)
    try:
        assert read_head(folder) is None
    except ValueError as error:
        assert file in str(error)


def test_a_head_for_another_width(folder, network):
    head = read_head(folder)
    narrow = type(head)(head.pooling, head.kernel[:8], head.bias, head.classes)
    with pytest.raises(ValueError, match="reads 8 features, the network has 16"):
        with_head(network.backbone, narrow)
