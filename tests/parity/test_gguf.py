"""Files written from transformers' tiny models as llama.cpp's converter does it, and read back."""

import json
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from decoders import TINY, random_model  # noqa: E402
from gguf_files import interleaved, sentencepiece_keys, write_file  # noqa: E402

from ftjax.data.tokenizer import load_tokenizer  # noqa: E402
from ftjax.pretrained.gguf import import_gguf  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

T = transformers
SIZES = TINY | {"vocab_size": 271, "num_hidden_layers": 4}
GEMMA = {"head_dim": 16, "sliding_window": 5, "tie_word_embeddings": True}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.1, 1.7],
    "long_factor": [1.3, 4.0],
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
# name -> architecture, model, its config, whether transformers reads such a file as it was written.
CASES = {
    "llama": ("llama", T.LlamaForCausalLM, T.LlamaConfig(**SIZES, rms_norm_eps=1e-5), True),
    "llama with biases": (
        "llama",
        T.LlamaForCausalLM,
        T.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        False,
    ),
    "llama 3": ("llama", T.LlamaForCausalLM, T.LlamaConfig(**SIZES, rope_parameters=LLAMA3), False),
    "qwen2": ("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config(**SIZES), True),
    "qwen2 with yarn": (
        "qwen2",
        T.Qwen2ForCausalLM,
        T.Qwen2Config(**SIZES, rope_parameters=YARN | {"rope_theta": 1000.0}),
        False,
    ),
    "qwen3": ("qwen3", T.Qwen3ForCausalLM, T.Qwen3Config(**SIZES, head_dim=16), False),
    "phi3": ("phi3", T.Phi3ForCausalLM, T.Phi3Config(**SIZES, sliding_window=6), False),
    "phi3 with longrope": (
        "phi3",
        T.Phi3ForCausalLM,
        T.Phi3Config(**SIZES, original_max_position_embeddings=12, rope_parameters=LONGROPE),
        False,
    ),
    "gemma": ("gemma", T.GemmaForCausalLM, T.GemmaConfig(**SIZES, head_dim=16), False),
    "gemma 2": (
        "gemma2",
        T.Gemma2ForCausalLM,
        T.Gemma2Config(**SIZES, **GEMMA, query_pre_attn_scalar=16, final_logit_softcapping=3.0),
        False,
    ),
    "gemma 3": (
        "gemma3",
        T.Gemma3ForCausalLM,
        T.Gemma3TextConfig(
            **(SIZES | {"num_hidden_layers": 7}),
            **GEMMA,
            query_pre_attn_scalar=16,
            rope_parameters=GEMMA3_ROPE,
        ),
        False,
    ),
}


def keys_of(name, config):
    """What llama.cpp's converter writes of a config."""
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head * config.num_attention_heads != config.hidden_size:
        keys |= {"attention.key_length": head, "attention.value_length": head}
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    keys["rope.freq_base"] = rope["rope_theta"]
    if rope["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        original = rope["original_max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = original
    if name == "phi3":
        original = config.original_max_position_embeddings
        keys["rope.scaling.original_context_length"] = original
        keys["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
        keys["attention.sliding_window"] = config.sliding_window or 0
        if "long_factor" in rope:
            scale = config.max_position_embeddings / original
            keys["rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(scale) / np.log(original)))
    if name in ("gemma2", "gemma3"):
        keys["attention.sliding_window"] = config.sliding_window
    if name == "gemma2":
        keys["attn_logit_softcapping"] = config.attn_logit_softcapping
        keys["final_logit_softcapping"] = config.final_logit_softcapping
    return {f"{name}.{key}": value for key, value in keys.items()}


def tensors_of(name, model):
    """The tensors as the converter stores them; their names are the gguf library's own."""
    config = model.config
    architecture = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for published, value in model.state_dict().items():
        if published == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = value.numpy()
        part = published.split(".")[-2]
        if name == "llama" and part in heads:
            value = interleaved(value, heads[part])
        if name.startswith("gemma") and part.endswith("norm"):
            value = value + 1
        tensors[names.get_name(published, (".weight", ".bias"))] = value
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = divisors(rope, config.head_dim)
    for kind in ("long", "short"):
        if f"{kind}_factor" in rope:
            tensors[f"rope_factors_{kind}.weight"] = np.asarray(rope[f"{kind}_factor"], np.float32)
    return tensors


def divisors(rope, head):
    """Llama 3's frequencies without and with scaling, one divided by the other."""
    plain = 1.0 / rope["rope_theta"] ** (np.arange(0, head, 2) / head)
    config = T.LlamaConfig(**SIZES, rope_parameters=rope)
    scaled = T.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    return (plain / scaled).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_the_network_a_file_was_written_from(tmp_path, case):
    name, model_class, config, has_reader = CASES[case]
    model = random_model(model_class, config).eval()
    keys = keys_of(name, config) | sentencepiece_keys()
    write_file(tmp_path / "model.gguf", name, keys, tensors_of(name, model))
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", dtype=np.float32)
    network = load_model(tmp_path / "out", "causal_lm")
    tokens = np.random.default_rng(0).integers(0, 271, (2, 20))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    found = network(jnp.asarray(tokens)).logits
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    # The folder is one for transformers too.
    again = T.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(again) is model_class
    with torch.no_grad():
        theirs = again(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(theirs, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    if has_reader:
        place = {"pretrained_model_name_or_path": tmp_path, "gguf_file": "model.gguf"}
        reader = T.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
        with torch.no_grad():
            theirs = reader(torch.tensor(tokens)).logits.numpy()
        np.testing.assert_allclose(theirs, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


TEXTS = [
    "Hello world, hello 12345 world's end!",
    "  leading,  double   and trailing  ",
    "I'LL say we're DON'T camelCaseWord HTTPServer",
    "tabs\tand\n\nlines\r\n  indented\n",
    "naïve café über élan 你好 🙂 Привет",
    "x = foo(bar)[0]; // y != z\n/path/to",
    "",
]


def byte_level_keys():
    """A byte-level vocabulary trained on this file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<|end|>", "<|begin|>"]
    )
    source = Path(__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([source, *TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.scores": None,
        "tokenizer.ggml.unknown_token_id": None,
    }


PRE = ["gpt-2", "dbrx", "deepseek-r1-qwen", "gpt-4o", "llama-bpe", "llama4", "qwen2", "tekken"]


@pytest.mark.parametrize("pre", [*PRE, "sentencepiece gemma2", "sentencepiece phi3"])
def test_tokens_are_those_of_transformers(tmp_path, pre):
    kind, _, name = pre.partition(" ")
    name = name or "llama"
    case = {"gemma2": "gemma 2", "phi3": "phi3"}.get(name, "llama")
    if kind == "sentencepiece":
        keys = sentencepiece_keys(words=("ab", "\u2581ab", "abc", "\u2581a"))
    else:
        keys = byte_level_keys() | {"tokenizer.ggml.pre": pre}
    _, model_class, config, _ = CASES[case]
    size = {"vocab_size": len(keys["tokenizer.ggml.tokens"])}
    model = model_class(type(config)(**(config.to_dict() | size)))
    keys |= keys_of(name, model.config)
    if name == "gemma2":
        keys["tokenizer.ggml.add_space_prefix"] = False
    write_file(tmp_path / "model.gguf", name, keys, tensors_of(name, model))
    import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    theirs = T.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in [*TEXTS, "ab abc  a", "<|end|>ab"]:
        expected = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == expected, text
        assert ours.decode(expected) == theirs.decode(expected)
