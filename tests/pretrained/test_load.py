import json
import shutil
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from ftjax.models.layers import Compute
from ftjax.pretrained.load import dotted, load_model, with_dropout


@pytest.fixture
def folder(tmp_path, tiny_bert):
    return shutil.copytree(tiny_bert, tmp_path / "bert")


def change(folder, function):
    tensors = load_file(folder / "model.safetensors")
    function(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_field(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def parameters(model):
    return {dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}


def test_every_tensor_in_its_place_and_layout(folder):
    tensors = load_file(folder / "model.safetensors")
    loaded = parameters(load_model(folder))
    assert len(loaded) == len(tensors)
    name = "encoder.layer.1.intermediate.dense"
    np.testing.assert_array_equal(loaded[f"{name}.kernel"], tensors[f"{name}.weight"].T)
    np.testing.assert_array_equal(loaded[f"{name}.bias"], tensors[f"{name}.bias"])
    name = "embeddings.word_embeddings"
    np.testing.assert_array_equal(loaded[f"{name}.embedding"], tensors[f"{name}.weight"])


def test_each_tensor_is_cast_from_its_own_type(folder):
    def halve(tensors):
        for number, name in enumerate(tensors):
            kind = (np.float32, np.float16, ml_dtypes.bfloat16)[number % 3]
            tensors[name] = tensors[name].astype(kind)

    change(folder, halve)
    loaded = parameters(load_model(folder, compute=Compute(param_dtype=jnp.bfloat16)))
    assert {value.dtype for value in loaded.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {v.dtype for v in parameters(load_model(folder)).values()} == {jnp.dtype("float32")}


def test_shards_are_one_checkpoint(folder):
    tensors = load_file(folder / "model.safetensors")
    expected = parameters(load_model(folder))
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, folder / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    loaded = parameters(load_model(folder))
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names the shard model-1\.safetensors"):
        load_model(folder)


def test_a_head_of_the_checkpoint_is_left_behind(folder):
    change(folder, lambda t: t.update({"pooler.dense.weight": np.zeros((16, 16), np.float32)}))
    change(folder, lambda t: t.update({"pooler.dense.bias": np.zeros(16, np.float32)}))
    load_model(folder)
    assert load_model(folder, "pooled").pooler is not None


def test_a_head_left_behind_is_told(folder):
    head = {"classifier.weight": np.zeros((2, 16), np.float32)}
    change(folder, lambda t: t.update(head))
    said = []
    load_model(folder, say=said.append)
    assert len(said) == 1
    assert "left behind: classifier.weight." in said[0]


def test_a_missing_head_is_not_filled_from_the_table(tmp_path, tiny_llama):
    folder = shutil.copytree(tiny_llama, tmp_path / "llama")
    change(folder, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        load_model(folder, "causal_lm")
    set_field(folder, tie_word_embeddings=True)
    assert load_model(folder, "causal_lm").lm_head is None


def test_a_whole_file_comes_before_an_index(folder):
    index = {"weight_map": {"embeddings.LayerNorm.weight": "old.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../a"}}'),
        *('{"weight_map": {"a": 3}}', '{"weight_map": {"a": ".."}}'),
    ],
)
def test_an_index_that_is_none(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"index\.json"):
        load_model(folder)


def test_whole_numbers_are_no_weights(folder):
    name = "embeddings.LayerNorm.weight"
    change(folder, lambda t: t.update({name: t[name].astype(np.int32)}))
    with pytest.raises(ValueError, match=r"LayerNorm\.weight holds I32, which are no weights"):
        load_model(folder)


def test_all_that_does_not_fit_is_in_one_list(folder):
    def spoil(tensors):
        del tensors["embeddings.LayerNorm.weight"]
        tensors["encoder.layer.0.output.dense.weight"] = np.zeros((3, 3), np.float32)
        tensors["encoder.layer.7.output.dense.weight"] = np.zeros((3, 3), np.float32)

    change(folder, spoil)
    with pytest.raises(ValueError, match=r"3 tensors") as error:
        load_model(folder)
    message = str(error.value)
    assert "missing: embeddings.LayerNorm.weight" in message
    assert "shape: encoder.layer.0.output.dense.weight is [3, 3], expected [16, 24]" in message
    assert "surplus: encoder.layer.7.output.dense.weight" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tensors_that_are_no_numbers(folder, value):
    def poison(tensors):
        tensors["embeddings.LayerNorm.bias"][3] = value
        tensors["encoder.layer.1.output.dense.weight"][2, 5] = -value

    change(folder, poison)
    with pytest.raises(ValueError, match=r": 2 of \d+ tensors hold NaN or Inf \(") as error:
        load_model(folder)
    assert "embeddings.LayerNorm.bias" in str(error.value)
    assert "encoder.layer.1.output.dense.weight" in str(error.value)


@pytest.mark.parametrize("kept", [5, 200, -1])
def test_a_cut_file(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_model(folder)


def test_pickles_are_refused_with_how_to_convert(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model.bin\).*save_file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("config.json", FileNotFoundError, "no config.json"),
        ("model.safetensors", FileNotFoundError, "no model.safetensors"),
    ],
)
def test_a_file_is_missing(folder, name, error, message):
    (folder / name).unlink()
    with pytest.raises(error, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "mamba"},
            "'mamba' is not among the families ftjax has: .*bert.*To add one",
        ),
        ({"hidden_act": "cosh"}, "hidden_act = 'cosh' must be one of 'gelu'"),
        ({"embedding_size": 8}, "embedding_size = 8"),
        ({"is_decoder": True}, "is_decoder = True .only False works here"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 32}, "expected"),
    ],
)
def test_configs_that_are_not_implemented(folder, fields, message):
    set_field(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_a_note_in_the_config_can_be_accepted(folder):
    set_field(folder, is_causal="harmless here")
    with pytest.raises(ValueError, match=r"is_causal = 'harmless here'[\s\S]*accept_fields"):
        load_model(folder)
    load_model(folder, accept_fields=("is_causal",))


def test_what_transformers_does_not_read_is_passed_over_and_told(folder):
    set_field(folder, my_note="harmless", hidden_dropout_prb=0.1, attn_implementation="eager")
    said = []
    load_model(folder, say=said.append)
    assert said == [
        "config.json: passed over what transformers does not read for bert either: my_note, "
        "hidden_dropout_prb (did you mean hidden_dropout_prob?)."
    ]


def test_what_is_accepted_and_not_there_is_told(folder):
    set_field(folder, quantization_config={"inner": "harmless here"})
    said = []
    load_model(folder, accept_fields=("quantization_config", "inner", "is_causl"), say=said.append)
    assert said == ["config.json has no field to be accepted of the name is_causl."]


def test_code_of_a_repository_is_never_run(folder):
    set_field(folder, auto_map={"AutoModel": "modeling.My"})
    said = []
    load_model(folder, say=said.append)
    assert "never run: it is read as transformers' bert" in said[0]
    set_field(folder, model_type="mine")
    with pytest.raises(ValueError, match=r"'mine' is defined by code in its repository"):
        load_model(folder)


def test_more_layers_than_tensors_are_not_built(folder):
    set_field(folder, num_hidden_layers=900)
    with pytest.raises(ValueError, match=r"announces 900 layers, but there are only \d+ tensors"):
        load_model(folder)


@pytest.mark.parametrize("old_names", [True, False])
def test_the_language_model_of_a_network_that_sees_images(tmp_path, tiny_llama, old_names):
    folder = shutil.copytree(tiny_llama, tmp_path / "llava")
    expected = parameters(load_model(folder, "causal_lm"))

    def wrap(tensors):
        for name in list(tensors):
            older = f"language_model.{name}"
            newer = name.replace("model.", "model.language_model.")
            tensors[older if old_names else newer] = tensors.pop(name)
        for name in ("vision_tower.a", "multi_modal_projector.b"):
            tensors[name if old_names else f"model.{name}"] = np.zeros(3, np.float32)

    change(folder, wrap)
    fields = json.loads((folder / "config.json").read_text())
    wrapper = {"model_type": "llava", "text_config": fields, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(wrapper))
    said = []
    loaded = parameters(load_model(folder, "causal_lm", say=said.append))
    assert loaded.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value)
    assert "of this llava its language model (llama) is loaded" in said[0]
    assert "left behind: multi_modal_projector, vision_tower." in said[0]
    (folder / "config.json").write_text(json.dumps(wrapper | {"text_config": 3}))
    with pytest.raises(ValueError, match="text_config = 3 must be an object"):
        load_model(folder, "causal_lm")


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_model(folder)


def test_a_network_that_the_family_lacks(folder):
    with pytest.raises(ValueError, match="has no network 'causal_lm'; it has backbone"):
        load_model(folder, "causal_lm")


def test_dropout_is_set_everywhere(folder):
    config = with_dropout(load_model(folder).config, 0.3)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3


def test_loading_takes_the_model_and_its_largest_tensor(tmp_path):
    """On a checkpoint of 560 MB; the limit is over what Python and JAX take by themselves."""
    program = f"""
        import json, resource
        from pathlib import Path
        import jax.numpy as jnp, numpy as np
        from flax import nnx
        from safetensors.numpy import save_file
        from ftjax.models import FAMILIES
        from ftjax.pretrained.load import dotted, load_model

        folder = Path({str(tmp_path)!r})
        fields = dict(vocab_size=60_000, hidden_size=768, num_hidden_layers=13,
                      num_attention_heads=12, intermediate_size=3072)
        family = FAMILIES["bert"]
        (folder / "config.json").write_text(json.dumps(fields | {{"model_type": "bert"}}))
        if {{stage!r}} == "write":
            build = lambda: family.networks["backbone"](
                family.parse_config(fields), rngs=nnx.Rngs(0))
            state = nnx.state(nnx.eval_shape(build))
            tensors = {{}}
            for path, leaf in nnx.to_flat_state(state):
                name = family.published_name(dotted(path), with_prefix=False)
                shape = family.to_published(dotted(path), np.broadcast_to(0, leaf.shape)).shape
                tensors[name] = np.full(shape, 0.5, np.float32)
            save_file(tensors, folder / "model.safetensors")
        else:
            jnp.zeros(3).block_until_ready()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            model = load_model(folder)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print((after - before) * 1024)
    """
    program = textwrap.dedent(program)

    def execute(stage):
        code = program.replace("{stage!r}", repr(stage))
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    execute("write")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 500e6
    largest = 60_000 * 768 * 4
    # The file is mapped into memory: its pages count as long as the system leaves them there.
    assert int(execute("read")) < size + largest
