"""Tiny GGUF files, as llama.cpp's converter makes them."""

import gguf
import numpy as np

HIDDEN, HEADS, KV_HEADS, WIDE, LAYERS = 32, 4, 2, 64, 2
TOKENS = ["<|end|>", "<|start|>", *"abcdefgh", "\u0120", "ab", "\u0120ab", "<tool>"]
MERGES = ["a b", "\u0120 ab"]


def keys_of(architecture):
    """Key -> value of a whole tiny file; types are those that the writer guesses."""
    return {
        f"{architecture}.context_length": 64,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.feed_forward_length": WIDE,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        "general.license": "apache-2.0",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 3) + [4],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
    }


def sentencepiece_keys(words=("ab", "\u2581ab", "abc"), *, bytes_too=True):
    """The tokenizer's keys of a SentencePiece model: control tokens, bytes, letters, words."""
    tokens = ["<unk>", "<s>", "</s>"]
    types = [2, 3, 3]
    if bytes_too:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [6] * 256
    pieces = [*words, "\u2581", *"abcdefgh"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens + pieces,
        "tokenizer.ggml.token_type": types + [1] * len(pieces),
        "tokenizer.ggml.scores": [0.0] * len(tokens) + [-float(n) for n in range(len(pieces))],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": None,
    }


def random_tensors(keys, seed=0):
    """GGUF's names -> float32 tensors of a llama, before the converter's changes."""
    random = np.random.default_rng(seed)
    size = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (len(keys["tokenizer.ggml.tokens"]), HIDDEN), "output_norm": (HIDDEN,)}
    for block in range(LAYERS):
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
    return {f"{n}.weight": random.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def interleaved(weight, heads):
    """What the converter does to llama's query and key projections."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def as_converted(tensors):
    """A llama's tensors as its file holds them."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
    return {
        name: interleaved(value, heads[name.split(".")[-2]])
        if name.split(".")[-2] in heads
        else value
        for name, value in tensors.items()
    }


def add_keys(writer, keys):
    """Adds keys whose value is not None, each with the type that llama.cpp's converter uses."""
    adders = {bool: writer.add_bool, str: writer.add_string, float: writer.add_float32}
    for name, value in keys.items():
        if value is None:
            continue
        if isinstance(value, list):
            writer.add_array(name, value)
        elif type(value) is int:
            (writer.add_uint32 if value >= 0 else writer.add_int32)(name, value)
        else:
            adders[type(value)](name, value)


def write_file(path, architecture, keys, tensors, *, quantise=None):
    """Writes keys and tensors; those of `quantise`, name -> type, hold that type's bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    add_keys(writer, keys)
    for name, value in tensors.items():
        kind = (quantise or {}).get(name)
        raw = value if kind is None or value.dtype == np.uint8 else gguf.quantize(value, kind)
        writer.add_tensor(name, np.ascontiguousarray(raw), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama(path, *, changed=None, tensors=None, architecture="llama", **options):
    """A whole tiny llama; `changed` keys are replaced, or left out where None.

    Returns:
        The tensors before conversion.
    """
    keys = keys_of(architecture) | (changed or {})
    whole = random_tensors(keys)
    stored = as_converted(whole) | (tensors or {})
    stored = {name: value for name, value in stored.items() if value is not None}
    write_file(path, architecture, keys, stored, **options)
    return whole


def write_parts(folder, count=3, total=None):
    """A file cut as llama.cpp's gguf-split does it: keys in the first part, tensors in all."""
    keys = keys_of("llama")
    tensors = random_tensors(keys)
    stored = list(as_converted(tensors).items())
    for number in range(count):
        own = (keys if number == 0 else {}) | {
            "split.no": number,
            "split.count": count,
            "split.tensors.count": total or len(stored),
        }
        path = folder / f"model-{number + 1:05}-of-{count:05}.gguf"
        write_file(path, "llama", own, dict(stored[number::count]))
    return tensors
