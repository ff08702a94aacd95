"""Tiny GGUF files made here, as llama.cpp's converter makes them."""

import json

import gguf
import numpy as np
import pytest
import transformers

from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.gguf import import_gguf
from ftjax.pretrained.load import load_model

HIDDEN, HEADS, KV_HEADS, WIDE = 32, 4, 2, 64
TOKENS = ["<|end|>", "<|start|>", *"abcdefgh", "\u0120", "ab", "\u0120ab", "<tool>"]
MERGES = ["a b", "\u0120 ab"]


def interleaved(weight, heads):
    """What the converter does to llama's query and key projections."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(path, architecture="llama", drop=(), extra=None, quantise=False):
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 3) + [4])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    for name, value in (extra or {}).items():
        writer.add_uint32(name, value)
    size = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    for block in range(2):
        shapes |= {
            f"blk.{block}.attn_norm": (HIDDEN,),
            f"blk.{block}.ffn_norm": (HIDDEN,),
            f"blk.{block}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{block}.attn_k": (size, HIDDEN),
            f"blk.{block}.attn_v": (size, HIDDEN),
            f"blk.{block}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{block}.ffn_gate": (WIDE, HIDDEN),
            f"blk.{block}.ffn_up": (WIDE, HIDDEN),
            f"blk.{block}.ffn_down": (HIDDEN, WIDE),
        }
    tensors = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    for name, value in tensors.items():
        if name in drop:
            continue
        if architecture == "llama" and name.endswith(("attn_q", "attn_k")):
            value = interleaved(value, HEADS if name.endswith("q") else KV_HEADS)
        if quantise and value.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def imported(tmp_path):
    tensors = write(tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", dtype=np.float32)
    return tensors, tmp_path / "out"


def test_tensors_are_what_they_were_before_conversion(imported):
    tensors, folder = imported
    layer = load_model(folder, "causal_lm").backbone.layers[1]
    for name, ours in (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj")):
        kernel = getattr(layer.self_attn, ours).kernel[...]
        np.testing.assert_array_equal(kernel, tensors[f"blk.1.{name}"].T)
    np.testing.assert_array_equal(layer.mlp.down_proj.kernel[...], tensors["blk.1.ffn_down"].T)


def test_config_tokenizer_and_licence(imported):
    _, folder = imported
    config = json.loads((folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert config["head_dim"] == 8
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == "{{ messages }}"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("abc ab<tool><|end|>")["input_ids"])
    assert tokens == ["ab", "c", "\u0120ab", "<tool>", "<|end|>"]
    assert tokenizer.decode([11, 4, 12]) == "abc ab"


def test_quantised_weights_are_near(tmp_path):
    tensors = write(tmp_path / "model.gguf", quantise=True)
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", dtype=np.float32)
    kernel = load_model(tmp_path / "out", "causal_lm").backbone.layers[0].mlp.up_proj.kernel[...]
    expected = tensors["blk.0.ffn_up"].T
    assert 0 < np.abs(kernel - expected).max() < np.abs(expected).max() / 100


def test_a_reference_to_a_gguf_is_imported_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "model.gguf")
    folder = checkpoint_folder(str(tmp_path / "model.gguf"))
    before = (folder / "config.json").stat().st_mtime_ns
    assert checkpoint_folder(str(tmp_path / "model.gguf")) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    load_model(folder, "causal_lm")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is the file model\.zip"):
        checkpoint_folder(str(tmp_path / "model.zip"))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_cut_short_leaves_nothing(tmp_path, kept):
    write(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="damaged, cut short or not a GGUF file"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "mamba"}, "'mamba' is not known; known: llama"),
        ({"extra": {"llama.expert_count": 8}}, "meaning of llama.expert_count = 8 is not known"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, settings, message):
    write(tmp_path / "model.gguf", **settings)
    with pytest.raises(ValueError, match=message):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")


def test_a_missing_tensor_is_found_on_loading(tmp_path):
    write(tmp_path / "model.gguf", drop=("blk.1.ffn_up",))
    import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    with pytest.raises(ValueError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(tmp_path / "out", "causal_lm")
