"""Heads that a checkpoint lacks, or has for another number of classes."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny import write_checkpoint

from ftjax.models import FAMILIES
from ftjax.pretrained.export import published_tensors
from ftjax.pretrained.load import load_model
from ftjax.pretrained.new_head import HeadedCheckpoint

HEAD = {
    *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
    *("classifier.weight", "classifier.bias"),
}
COLOURS = ("red", "green", "blue")


def headed(folder, classes=COLOURS, seed=0, network="sequence_classification"):
    return HeadedCheckpoint(folder, network, classes, jax.random.key(seed))


def test_a_backbone_gets_a_head_of_its_classes_and_keeps_its_own_weights(tiny_bert):
    checkpoint = headed(tiny_bert)
    # The file of a bare backbone has no prefix.
    assert set(checkpoint.new) == {name.removeprefix("bert.") for name in HEAD}
    network = load_model(checkpoint, "sequence_classification")
    assert network(np.ones((2, 4), np.int32)).logits.shape == (2, 3)
    assert not np.any(network.classifier.bias[...])
    for name, tensor in load_file(tiny_bert / "model.safetensors").items():
        np.testing.assert_array_equal(checkpoint.read(name), tensor)

    again, other = headed(tiny_bert), headed(tiny_bert, seed=1)
    np.testing.assert_array_equal(
        checkpoint.read("classifier.weight"), again.new["classifier.weight"]
    )
    assert np.any(checkpoint.read("classifier.weight") != other.new["classifier.weight"])


def test_its_config_says_the_classes_as_transformers_does(tiny_bert):
    fields = headed(tiny_bert).fields
    assert fields["id2label"] == {"0": "red", "1": "green", "2": "blue"}
    assert fields["label2id"] == {"red": 0, "green": 1, "blue": 2}


@pytest.fixture
def classifier(tmp_path):
    folder = tmp_path / "classifier"
    folder.mkdir()
    fields = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 24,
        "id2label": {"0": "a", "1": "b", "2": "c"},
    }
    write_checkpoint(folder, FAMILIES["bert"], fields, "sequence_classification")
    return folder


def test_a_head_that_fits_is_kept(classifier):
    checkpoint = headed(classifier)
    assert not checkpoint.new
    network = load_model(checkpoint, "sequence_classification")
    stored = load_file(classifier / "model.safetensors")
    for name, tensor in published_tensors(network, FAMILIES["bert"]):
        np.testing.assert_array_equal(tensor, stored[name])


def test_of_another_number_of_classes_only_the_last_layer_is_new(classifier):
    checkpoint = headed(classifier, classes=("yes", "no"))
    assert set(checkpoint.new) == {"classifier.weight", "classifier.bias"}
    network = load_model(checkpoint, "sequence_classification")
    assert network.classifier.kernel.shape == (16, 2)


def test_what_is_no_head_is_still_missed(tmp_path, tiny_bert):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: encoder\.layer\.0\.output\.dense\.bias"):
        load_model(headed(folder), "sequence_classification")


def test_a_network_that_the_family_lacks(tiny_bert):
    with pytest.raises(ValueError, match="has no network 'image_classification'; it has backbone"):
        headed(tiny_bert, network="image_classification")


def test_every_head_starts_as_its_config_says(tmp_path):
    """Deviation `initializer_range`; without, 0.02."""
    for fields, deviation in (({"initializer_range": 0.5}, 0.5), ({}, 0.02)):
        config = FAMILIES["llama"].parse_config(
            {"hidden_size": 256, "num_hidden_layers": 1, **fields}
        )
        build = FAMILIES["llama"].networks["sequence_classification"]
        kernel = jax.jit(
            lambda build=build, config=config: build(config, rngs=nnx.Rngs(0)).score.kernel[...]
        )()
        assert abs(float(kernel.std()) / deviation - 1) < 0.1


def test_the_example_of_the_documentation(tiny_bert, capsys):
    page = Path(__file__).parents[2] / "docs" / "models.md"
    example = re.search(r"```python\n(.+?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(example[1].replace('"folder"', repr(str(tiny_bert))), {})
    assert capsys.readouterr().out == "['classifier.bias', 'classifier.weight']\n"
