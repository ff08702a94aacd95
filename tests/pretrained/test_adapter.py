"""Adapter folders: what is written comes back, and what cannot be used is refused by name."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_families import CONFIGS
from tiny import write_checkpoint

from ftjax.config import base_config
from ftjax.models import FAMILIES
from ftjax.models.heads import LanguageModel
from ftjax.models.layers import Compute
from ftjax.pretrained.adapter import load_adapter, save_adapter
from ftjax.pretrained.adapter_file import CONFIG, FORMS, WEIGHTS
from ftjax.pretrained.load import load_model
from ftjax.tuning import METHODS
from ftjax.tuning.reinit import reinitialise_top
from ftjax.tuning.tune import tune

IDS = np.arange(4, 12)[None]


def tuned(base, method, name="causal_lm", **changes):
    """A network under a method, all that it trains moved."""
    settings = base_config(method=method).tuning
    for field, value in changes.items():
        settings[field] = value
    rebuild, trainable, frozen = tune(LanguageModel(load_model(base, name)), settings, 0)
    random = np.random.default_rng(0)
    moved = {p: v + 0.1 * random.normal(size=v.shape).astype("f") for p, v in trainable.items()}
    return rebuild(moved, frozen)


@pytest.fixture(scope="module")
def saved(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    save_adapter(tuned(tiny_llama, "lora"), "causal_lm", tiny_llama, folder)
    return folder


@pytest.fixture
def written(tiny_llama, saved, tmp_path):
    """(base, adapter folder) of a LoRA."""
    return tiny_llama, shutil.copytree(saved, tmp_path / "adapter")


def loaded(base, folder, say=None):
    network = LanguageModel(load_model(base, "causal_lm"))
    load_adapter(network, base, folder, say)
    return network


def change(folder, **fields):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


WITH_FORM = [name for name, method in METHODS.items() if method.adapter_form is not None]


@pytest.mark.parametrize("method", [name for name in WITH_FORM if "p" not in name[:2]])
def test_what_is_written_computes_the_same(tiny_llama, tmp_path, method):
    network = tuned(tiny_llama, method)
    save_adapter(network, "causal_lm", tiny_llama, tmp_path / "adapter")
    expected = np.asarray(network.backbone(IDS).logits)
    found = loaded(tiny_llama, tmp_path / "adapter").backbone(IDS).logits
    # Frozen weights in few bits are not in the adapter.
    atol = 0.05 * np.abs(expected).max() if method == "qlora" else 1e-5
    np.testing.assert_allclose(found, expected, atol=atol)
    plain = load_model(tiny_llama, "causal_lm")(IDS).logits
    assert np.abs(plain - expected).max() > 10 * atol


@pytest.mark.parametrize("method", ["houlsby", "prefix", "full"])
def test_what_peft_has_no_form_for_is_refused(tiny_llama, tmp_path, method):
    with pytest.raises(ValueError, match="what is written in peft's format are"):
        save_adapter(tuned(tiny_llama, method), "causal_lm", tiny_llama, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_other_weights_than_the_published_is_not_kept(tiny_llama, tmp_path):
    network = tuned(tiny_llama, "lora")
    other = tuned(tiny_llama, "lora")
    reinitialise_top(network, other, 1)
    layer = network.backbone.backbone.layers[1].mlp.up_proj
    layer.kernel.set_value(1.5 * layer.kernel[...])
    with pytest.raises(ValueError, match="With the adapter put on the published network, the"):
        save_adapter(network, "causal_lm", tiny_llama, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_grown_table_is_refused(tiny_llama, tmp_path):
    network = tuned(tiny_llama, "lora")
    rows = network.backbone.config.vocab_size
    network.backbone = load_model(tiny_llama, "causal_lm", rows=rows + 2)
    tune(network, base_config(method="lora").tuning, 0)
    with pytest.raises(ValueError, match=f"has {rows + 2} tokens, the published one {rows}"):
        save_adapter(network, "causal_lm", tiny_llama, tmp_path / "adapter")


def test_in_half_precision(tiny_llama, tmp_path):
    settings = base_config(method="lora").tuning
    compute = Compute(dtype="bfloat16")
    network = LanguageModel(load_model(tiny_llama, "causal_lm", compute))
    rebuild, trainable, frozen = tune(network, settings, 0)
    save_adapter(rebuild(trainable, frozen), "causal_lm", tiny_llama, tmp_path / "adapter")


def test_one_table_of_two_stacks_is_written_for_both(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_checkpoint(base, FAMILIES["t5"], CONFIGS["t5"], "seq2seq_lm")
    network = tuned(base, "lora", "seq2seq_lm", targets=r".*\.(shared|q)")
    save_adapter(network, "seq2seq_lm", base, tmp_path / "adapter")
    names = {n for n in load_file(tmp_path / "adapter" / WEIGHTS) if "lora_embedding_A" in n}
    stacks = {f"base_model.model.{s}.embed_tokens.lora_embedding_A" for s in ("encoder", "decoder")}
    assert names == stacks


BAD = {
    "r": [0, -1, True, 8.0, "8", None, 10**9],
    "lora_alpha": [0, -4, float("nan"), float("inf"), "16", 1e30, [1]],
    "lora_dropout": [1.5, -0.1, float("nan")],
    "use_rslora": ["no", 1, []],
    "use_dora": ["false", True],
    "bias": ["some", None],
    "rank_pattern": [{"q_proj": 0}, {"(": 4}, ["q_proj"], {"q_proj": 3}],
    "alpha_pattern": [{"q_proj": float("nan")}, {"q_proj": "8"}],
    "target_modules": [None, 3, [1], "(", ["k_proj"], [], "all-linear"],
    "exclude_modules": ["(", 5, ["q_proj"]],
    "layers_to_transform": [["0"], 1.5, [True]],
    "modules_to_save": ["norm", [3], ["["], ["q_proj"]],
    "init_lora_weights": ["pissa", "OLoRA", "corda", "loftq", "lora_ga", "best", 3],
    "alora_invocation_tokens": [[7, 8], 3],
    "layer_replication": [[[0, 1]]],
    "use_qalora": [True, "no"],
    "trainable_token_indices": [[], [1, 1], [-1], ["a"], {}, {"x": []}, "all"],
    "a_field_of_tomorrow": [1, True, "on", [0]],
    "peft_type": ["ADALORA", None, ["LORA"], {}],
}


@pytest.mark.parametrize("field", BAD)
def test_a_value_that_cannot_be_is_refused_by_name(written, field):
    base, folder = written
    whole = json.loads((folder / CONFIG).read_text())
    for value in BAD[field]:
        (folder / CONFIG).write_text(json.dumps(whole | {field: value}))
        with pytest.raises(ValueError) as error:
            loaded(base, folder)
        assert str(folder) in str(error.value), value
        assert len(str(error.value)) < 600


def test_what_changes_nothing_is_passed_over(written):
    base, folder = written
    change(
        folder,
        peft_version="9.9",
        revision="main",
        loftq_config={},
        qalora_group_size=16,
        runtime_config={"ephemeral_gpu_offload": False},
        layers_pattern=None,
        merge_weights=False,
        enable_lora=None,
    )
    said = []
    loaded(base, folder, said.append)
    assert len(said) == 1 and "merge_weights, enable_lora" in said[0]


def spoil(folder, name, spoiled):
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = spoiled(tensors[name])
    save_file(tensors, folder / WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_tensors_that_are_no_numbers_are_refused_by_name(written):
    base, folder = written
    spoil(folder, Q, lambda a: np.where(a == a.max(), np.inf, a))
    with pytest.raises(ValueError, match=rf"{Q} of 8 tensors hold NaN or Inf"):
        loaded(base, folder)
    spoil(folder, Q, lambda a: np.full(a.shape, 1e300))
    with pytest.raises(ValueError, match="NaN or Inf"):
        loaded(base, folder)
    spoil(folder, Q, lambda a: np.zeros(a.shape, np.int8))
    with pytest.raises(ValueError, match=rf"{Q} holds I8, which are no weights"):
        loaded(base, folder)


def test_missing_surplus_and_misshapen_tensors_are_named(written):
    base, folder = written
    whole = load_file(folder / WEIGHTS)
    cases = {
        r"self_attn.q_proj lacks lora_A": {n: t for n, t in whole.items() if n != Q},
        r"no place for 1 tensors of the adapter: base_model.other": whole
        | {"base_model.other": np.zeros(2, "f")},
        r"q_proj.lora_A is \[8, 15\], expected \[8, 16\]": whole | {Q: whole[Q][:, :15].copy()},
        r"has lora_B.bias, which these settings have no use for": whole
        | {Q.replace("lora_A.weight", "lora_B.bias"): np.zeros(16, "f")},
        r"has tensors for model.layers.0.self_attn.o_proj, which target_modules": whole
        | {Q.replace("q_proj", "o_proj"): whole[Q]},
    }
    for message, tensors in cases.items():
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(ValueError, match=message):
            loaded(base, folder)


def test_only_a_pickle(written):
    base, folder = written
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"only adapter_model.bin, a pickle"):
        loaded(base, folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {WEIGHTS}"):
        loaded(base, folder)


def test_a_size_that_is_only_announced_is_not_believed(written):
    base, folder = written
    header = {Q: {"dtype": "F32", "shape": [2**31, 2**20], "data_offsets": [0, 2**53]}}
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        loaded(base, folder)


def test_each_kind_is_read_by_one_form():
    assert set(FORMS) == {"LORA", "IA3", "VERA", "PROMPT_TUNING", "P_TUNING"}
