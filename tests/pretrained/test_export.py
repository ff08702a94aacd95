import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from ftjax.pretrained import export as export_module
from ftjax.pretrained.export import export
from ftjax.pretrained.load import dotted, load_model


def parameters(model):
    return {dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.fixture(params=[("tiny_bert", "backbone"), ("tiny_llama", "causal_lm")])
def case(request):
    folder, name = request.getfixturevalue(request.param[0]), request.param[1]
    return folder, name, load_model(folder, name)


def test_the_export_is_the_file_it_came_from(tmp_path, case):
    base, name, model = case
    export(model, name, base, tmp_path / "out")
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "out", base))
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        np.testing.assert_array_equal(ours[tensor], value, err_msg=tensor)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"


def test_shards(tmp_path, case, monkeypatch):
    base, name, model = case
    monkeypatch.setattr(export_module, "LARGEST_SHARD_BYTES", 4000)
    export(model, name, base, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    again = parameters(load_model(tmp_path / "out", name))
    for path, value in parameters(model).items():
        np.testing.assert_array_equal(again[path], value)


def test_an_export_that_does_not_load_the_same_is_not_kept(tmp_path, case, monkeypatch):
    base, name, model = case
    original = export_module.published_tensors

    def spoiled(model, family):
        for number, (tensor, value) in enumerate(original(model, family)):
            yield tensor, value + (number == 3)

    monkeypatch.setattr(export_module, "published_tensors", spoiled)
    with pytest.raises(ValueError, match="does not load as the same network"):
        export(model, name, base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_overwritten(tmp_path, case):
    base, name, model = case
    with pytest.raises(FileExistsError, match="choose another"):
        export(model, name, base, tmp_path)
