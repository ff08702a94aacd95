"""Tiny GGUF files made here, as llama.cpp's converter makes them."""

import json

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from gguf_files import (
    HIDDEN,
    TOKENS,
    WIDE,
    as_converted,
    keys_of,
    random_tensors,
    sentencepiece_keys,
    write_file,
    write_llama,
    write_parts,
)
from safetensors.numpy import load_file

from ftjax.data.tokenizer import load_tokenizer
from ftjax.pretrained.checkpoint_folder import checkpoint_folder
from ftjax.pretrained.gguf import import_gguf, make_config
from ftjax.pretrained.gguf_file import read_gguf
from ftjax.pretrained.load import load_model

Type = gguf.GGMLQuantizationType


def imported(tmp_path, *, dtype=np.float32, **options):
    """The folder of an imported tiny llama, and its tensors before conversion."""
    tensors = write_llama(tmp_path / "model.gguf", **options)
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", dtype=dtype)
    return tmp_path / "out", tensors


def refused(tmp_path, message, **options):
    """Asserts that an import says so, and leaves nothing behind."""
    write_llama(tmp_path / "model.gguf", **options)
    with pytest.raises(ValueError, match=message) as raised:
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert "model.gguf" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def ids(folder, text):
    return transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


# Networks


def test_tensors_are_what_they_were_before_conversion(tmp_path):
    folder, tensors = imported(tmp_path)
    layer = load_model(folder, "causal_lm").backbone.layers[1]
    for name, ours in (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj")):
        kernel = getattr(layer.self_attn, ours).kernel[...]
        np.testing.assert_array_equal(kernel, tensors[f"blk.1.{name}.weight"].T)
    kernel = layer.mlp.down_proj.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["blk.1.ffn_down.weight"].T)


def test_config_tokenizer_and_licence(tmp_path):
    folder, _ = imported(tmp_path)
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


def test_the_order_of_keys_and_tensors_does_not_matter(tmp_path):
    folder, tensors = imported(tmp_path)
    keys = dict(reversed(keys_of("llama").items()))
    stored = dict(reversed(as_converted(tensors).items()))
    write_file(tmp_path / "reversed.gguf", "llama", keys, stored)
    import_gguf(tmp_path / "reversed.gguf", tmp_path / "other", dtype=np.float32)
    tokens = jnp.arange(6)[None]
    expected = load_model(folder, "causal_lm")(tokens).logits
    np.testing.assert_array_equal(
        load_model(tmp_path / "other", "causal_lm")(tokens).logits, expected
    )


def test_a_head_of_its_own(tmp_path):
    head = np.random.default_rng(1).normal(size=(len(TOKENS), HIDDEN)).astype(np.float32)
    folder, _ = imported(tmp_path, tensors={"output.weight": head})
    np.testing.assert_array_equal(load_model(folder, "causal_lm").lm_head.kernel[...], head.T)


def test_more_rows_than_tokens(tmp_path):
    """A table that was padded, as Gemma 3's is where the text part is alone."""
    table = np.ones((len(TOKENS) + 5, HIDDEN), np.float32)
    folder, _ = imported(tmp_path, tensors={"token_embd.weight": table})
    assert load_model(folder, "causal_lm").config.vocab_size == len(TOKENS) + 5


DEQUANTISED = sorted(gguf.quants._type_traits, key=lambda kind: kind.name)


@pytest.mark.parametrize("kind", DEQUANTISED, ids=lambda kind: kind.name)
def test_every_type_that_the_library_can_read(tmp_path, kind):
    wide = 256
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # Small bytes: as float16, float8 or exponents they are finite.
    raw = np.random.default_rng(0).integers(0, 56, size=(HIDDEN, wide // block * size), dtype="u1")
    expected = gguf.dequantize(raw, kind)
    assert np.isfinite(expected).all() and expected.any()
    stored = {"blk.1.ffn_down.weight": raw}
    for name in ("blk.0.ffn_down", "blk.0.ffn_gate", "blk.0.ffn_up", "blk.1.ffn_gate"):
        shape = (HIDDEN, wide) if name.endswith("down") else (wide, HIDDEN)
        stored[f"{name}.weight"] = np.zeros(shape, np.float32)
    stored["blk.1.ffn_up.weight"] = stored["blk.1.ffn_gate.weight"]
    folder, _ = imported(
        tmp_path,
        changed={"llama.feed_forward_length": wide},
        tensors=stored,
        quantise={"blk.1.ffn_down.weight": kind},
    )
    found = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(found, expected)


def test_quantised_weights_are_near(tmp_path):
    folder, tensors = imported(tmp_path, quantise={"blk.0.ffn_up.weight": Type.Q8_0})
    kernel = load_model(folder, "causal_lm").backbone.layers[0].mlp.up_proj.kernel[...]
    expected = tensors["blk.0.ffn_up.weight"].T
    assert 0 < np.abs(kernel - expected).max() < np.abs(expected).max() / 100


def test_a_type_that_is_no_weight(tmp_path):
    whole = np.zeros((WIDE, HIDDEN), np.int32)
    refused(tmp_path, r"ffn_up.weight is stored as I32", tensors={"blk.0.ffn_up.weight": whole})


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({}, {"rope_scaling": None}),
        ({"llama.rope.scale_linear": 4.0}, {"rope_scaling": {"rope_type": "linear", "factor": 4}}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        ({"llama.rope.scaling.type": "none"}, {"rope_scaling": None}),
        ({"llama.attention.head_count_kv": None}, None),
        ({"llama.feed_forward_length": [WIDE, WIDE]}, {"intermediate_size": WIDE}),
        ({"llama.rope.freq_base": None}, {"rope_theta": 10000.0}),
        ({"llama.expert_count": 0}, {}),
        ({"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.scores": [0.0] * 14}, {}),
        ({"quantize.imatrix.file": "x", "someone.note": "y"}, {}),
    ],
)
def test_what_keys_become(tmp_path, changed, fields):
    if fields is None:
        refused(tmp_path, r"attn_k.weight is \[16, 32\], expected \[32, 32\]", changed=changed)
        return
    folder, _ = imported(tmp_path, changed=changed)
    config = json.loads((folder / "config.json").read_text())
    assert {name: config.get(name) for name in fields} == fields
    load_model(folder, "causal_lm")
    if "someone.note" in changed:
        passed_over = "Keys that were passed over: quantize.imatrix.file, someone.note."
        assert passed_over in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("architecture", "layers", "expected"), [("gemma3", 62, 8), ("gemma3", 48, 16)]
)
def test_the_attention_scale_of_gemma_3(tmp_path, architecture, layers, expected):
    """Gemma 3 27B: 5376 / 32 = 168 where heads have 128; all others: what heads have."""
    keys = keys_of(architecture) | sentencepiece_keys()
    keys |= {"gemma3.block_count": layers, "gemma3.attention.key_length": 16}
    keys |= {"gemma3.attention.sliding_window": 8}
    tensors = {f"blk.{n}.attn_norm.weight": np.ones(HIDDEN, "f4") for n in range(layers)}
    tensors["token_embd.weight"] = np.ones((8, HIDDEN), "f4")
    write_file(tmp_path / "model.gguf", architecture, keys, tensors)
    config = make_config(read_gguf(tmp_path / "model.gguf"))
    assert config["query_pre_attn_scalar"] == expected


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({}, {"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0}),
        ({"gemma3.attention.sliding_window_pattern": 2}, {"sliding_window_pattern": 2}),
        (
            {"gemma3.attention.sliding_window_pattern": [True, False]},
            {"layer_types": ["sliding_attention", "full_attention"]},
        ),
        ({"gemma3.rope.freq_base_swa": 500.0}, {"rope_local_base_freq": 500.0}),
        ({"gemma3.attention.sliding_window": None}, "no gemma3.attention.sliding_window; a whole"),
        ({"gemma3.rope.freq_base": None}, "no gemma3.rope.freq_base; a number"),
    ],
)
def test_the_windows_of_gemma_3(tmp_path, changed, fields):
    keys = keys_of("gemma3") | {"gemma3.attention.sliding_window": 8} | changed
    write_file(tmp_path / "model.gguf", "gemma3", keys, random_tensors(keys))
    if isinstance(fields, str):
        with pytest.raises(ValueError, match=fields):
            make_config(read_gguf(tmp_path / "model.gguf"))
        return
    config = make_config(read_gguf(tmp_path / "model.gguf"))
    assert {name: config[name] for name in fields} == fields


# Tokenizers


def test_llama_3_takes_whole_words_and_begins_with_bos(tmp_path):
    # `cab` cannot be merged from its parts.
    tokens = [*TOKENS, "cab"]
    changed = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens}
    changed["tokenizer.ggml.token_type"] = [3, 3] + [1] * (len(tokens) - 2)
    folder, _ = imported(tmp_path, changed=changed)
    assert ids(folder, "cab ab") == [1, tokens.index("cab"), tokens.index("\u0120ab")]
    # Another way to cut texts takes it apart.
    (tmp_path / "other").mkdir()
    folder, _ = imported(tmp_path / "other", changed=changed | {"tokenizer.ggml.pre": "qwen2"})
    assert ids(folder, "cab") == [tokens.index("c"), tokens.index("ab")]


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [(None, None, [2]), (True, None, [1, 2]), (False, True, [2, 0]), (True, True, [1, 2, 0])],
)
def test_tokens_around_a_text(tmp_path, bos, eos, expected):
    changed = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    folder, _ = imported(tmp_path, changed=changed)
    assert ids(folder, "a") == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 0),
        ({"tokenizer.ggml.eot_token_id": 1}, [0, 1]),
        ({"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 13}, [0, 1, 13]),
        # By its name, where a file does not say it.
        ({"tokenizer.ggml.eos_token_id": 1}, [1, 0]),
        ({"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.token_type": [1] * 14}, None),
    ],
)
def test_what_ends_a_text(tmp_path, changed, expected):
    folder, _ = imported(tmp_path, changed=changed)
    found = json.loads((folder / "generation_config.json").read_text())
    assert found.get("eos_token_id") == expected
    assert json.loads((folder / "config.json").read_text()).get("eos_token_id") == expected
    load_model(folder, "causal_lm")


def test_sentencepiece(tmp_path):
    folder, _ = imported(tmp_path, changed=sentencepiece_keys())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = tokenizer.convert_ids_to_tokens(tokenizer("ab abé")["input_ids"])
    assert found == ["<s>", "\u2581ab", "\u2581ab", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer("ab abé")["input_ids"][1:]) == "ab abé"


@pytest.mark.parametrize("missing", ["token_type", "scores", "unknown_token_id", "bos_token_id"])
def test_sentencepiece_that_leaves_things_unsaid(tmp_path, missing):
    """Fifteen tokens, no bytes, and a key less: what llama.cpp takes instead."""
    changed = sentencepiece_keys(bytes_too=False)
    assert len(changed["tokenizer.ggml.tokens"]) == 15
    folder, _ = imported(tmp_path, changed=changed | {f"tokenizer.ggml.{missing}": None})
    tokenizer = load_tokenizer(folder)
    found = tokenizer.convert_ids_to_tokens(tokenizer("ab é")["input_ids"])
    assert found == ["<s>", "\u2581ab", "\u2581", "<unk>"]


def test_byte_level_tokens_without_types(tmp_path):
    folder, _ = imported(tmp_path, changed={"tokenizer.ggml.token_type": None})
    assert ids(folder, "ab<|end|>") == [TOKENS.index("ab"), 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "model = 'bert' is not known; known: gpt2, llama"),
        ({"tokenizer.ggml.pre": "unheard"}, "pre = 'unheard' is not known; known: default"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges; a list of texts was"),
        ({"tokenizer.ggml.merges": ["ab"]}, "is no pair of tokens"),
        ({"tokenizer.ggml.merges": ["x y"]}, "make no tokenizer"),
        ({"tokenizer.ggml.tokens": ["a"] * 14}, "has 'a' twice"),
        ({"tokenizer.ggml.tokens": ["a" * 2000, *TOKENS[1:]]}, "a token of 2,000 characters"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 entries for 14 tokens"),
        ({"tokenizer.ggml.token_type": [99] * 14}, "one that is not from 1 to 6"),
        ({"tokenizer.ggml.eos_token_id": 14}, "eos_token_id is 14; a whole number from 0 to 13"),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
            "every text has the bos token .* no tokenizer.ggml.bos_token_id",
        ),
        ({"tokenizer.ggml.add_sep_token": True}, "the meaning of tokenizer.ggml.add_sep_token"),
        (sentencepiece_keys() | {"tokenizer.ggml.scores": [0.5]}, "scores has 1 entries for 271"),
        (
            sentencepiece_keys(bytes_too=False) | {"tokenizer.ggml.scores": [float("nan")] * 15},
            r"scores is \[nan, .*; a list of finite numbers is needed",
        ),
    ],
)
def test_a_tokenizer_that_makes_no_sense(tmp_path, changed, message):
    refused(tmp_path, message, changed=changed)


# Keys and tensors that are refused


@pytest.mark.parametrize(
    "key",
    [
        *("context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("attention.head_count", "attention.layer_norm_rms_epsilon"),
    ],
)
def test_a_missing_key_is_named(tmp_path, key):
    refused(tmp_path, rf"has no llama\.{key}; a .* was looked for", changed={f"llama.{key}": None})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 2**31 - 1),
        ("block_count", "2"),
        ("embedding_length", 2**31 - 1),
        ("attention.head_count", -4),
        ("attention.head_count", [4, 2]),
        ("attention.head_count_kv", 3),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("attention.layer_norm_rms_epsilon", 0.0),
        ("rope.freq_base", float("inf")),
        ("rope.freq_base", -1.0),
        ("rope.dimension_count", 4),
        ("attention.key_length", 7),
        ("attention.value_length", 16),
        ("rope.scaling.type", "unheard"),
        ("rope.scaling.factor", float("nan")),
        ("attention.sliding_window", 8),
        ("expert_count", 8),
        ("final_logit_softcapping", 30.0),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tmp_path, key, value):
    named = key.replace("head_count_kv", "attn_k|num_key_value_heads")
    named = named.replace("key_length", "attn_q|head_dim")
    refused(tmp_path, named, changed={f"llama.{key}": value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, "'mamba' is not known; known: llama"),
        ({"changed": {"general.type": "adapter"}}, "holds a 'adapter', not a model"),
        ({"changed": {"adapter.lora.alpha": 1.0}}, "meaning of adapter.lora.alpha = 1.0"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "blk.1.ffn_up.weight is missing"),
        ({"tensors": {"token_embd.weight": None}}, "no tensor token_embd.weight"),
        ({"tensors": {"blk.0.ffn_gate_inp.weight": np.ones(3, "f4")}}, "gate_inp.* is not known"),
        (
            {"tensors": {"blk.0.ffn_norm.weight": np.ones(31, "f4")}},
            r"ffn_norm.weight is \[31\], expected \[32\]",
        ),
        (
            {"tensors": {"blk.0.ffn_norm.weight": np.full(HIDDEN, np.inf, "f4")}},
            "blk.0.ffn_norm.weight holds NaN or infinity",
        ),
        ({"tensors": {"rope_freqs.weight": np.full(4, 3.0, "f4")}}, "not the scaling of Llama 3"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, options, message):
    refused(tmp_path, message, **options)


# Files


def test_a_reference_to_a_gguf_is_imported_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    write_llama(tmp_path / "model.gguf")
    folder = checkpoint_folder(str(tmp_path / "model.gguf"))
    before = (folder / "config.json").stat().st_mtime_ns
    assert checkpoint_folder(str(tmp_path / "model.gguf")) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    load_model(folder, "causal_lm")


@pytest.mark.parametrize("given", [1, 3])
def test_a_split_file_is_joined(tmp_path, monkeypatch, given):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    tensors = write_parts(tmp_path)
    folder = checkpoint_folder(str(tmp_path / f"model-{given:05}-of-00003.gguf"))
    network = load_model(folder, "causal_lm")
    for block in range(2):
        kernel = network.backbone.layers[block].mlp.up_proj.kernel[...]
        np.testing.assert_array_equal(kernel, tensors[f"blk.{block}.ffn_up.weight"].T)


def test_another_part_is_another_network(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    write_parts(tmp_path)
    folder = checkpoint_folder(str(tmp_path / "model-00001-of-00003.gguf"))
    last = tmp_path / "model-00003-of-00003.gguf"
    content = bytearray(last.read_bytes())
    content[-8:-4] = np.float32(0.5).tobytes()
    last.write_bytes(content)
    assert checkpoint_folder(str(tmp_path / "model-00001-of-00003.gguf")) != folder


def test_parts_that_are_not_there(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "model-00002-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError, match=r"is no model-00002-of-00003\.gguf\. All parts"):
        import_gguf(tmp_path / "model-00001-of-00003.gguf", tmp_path / "out")
    (tmp_path / "model-00001-of-00003.gguf").rename(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"part 0 .* of 3, and is read as part 0 of 1"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")


def test_parts_with_too_few_tensors(tmp_path):
    write_parts(tmp_path, total=40)
    with pytest.raises(ValueError, match="announces 40 tensors in all parts; 20 are there"):
        import_gguf(tmp_path / "model-00001-of-00003.gguf", tmp_path / "out")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is the file model\.zip"):
        checkpoint_folder(str(tmp_path / "model.zip"))


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_short_leaves_nothing(tmp_path, kept):
    write_llama(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="damaged, cut short or not a GGUF file"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
