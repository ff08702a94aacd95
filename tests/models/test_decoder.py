"""Packed rows, the cache, and what a decoder's config.json may not say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ftjax.models import FAMILIES
from ftjax.models.layers import Compute

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FIELDS = {
    "gpt2": GPT2,
    "llama": TINY,
    "mistral": TINY | {"sliding_window": 4},
    "qwen2": TINY | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": TINY,
    "phi3": TINY | {"partial_rotary_factor": 0.5},
    "gemma": TINY,
    "gemma2": TINY | {"sliding_window": 4},
    "gemma3_text": TINY | {"sliding_window": 4, "sliding_window_pattern": 2},
}


def abstract(model_type, name="causal_lm", compute=Compute(), **fields):  # noqa: B008
    family = FAMILIES[model_type]
    config = family.parse_config(FIELDS[model_type] | fields)
    return nnx.eval_shape(lambda: family.networks[name](config, compute, rngs=nnx.Rngs(0)))


def network(model_type, name="causal_lm", **fields):
    """A network of random parameters, large enough for a difference to show."""
    model = abstract(model_type, name, **fields)
    random = np.random.default_rng(0)

    def parameter(leaf):
        noise = 0.15 * random.normal(size=leaf.shape)
        return jnp.asarray(noise + (leaf.ndim == 1), jnp.float32)

    nnx.update(model, jax.tree.map(parameter, nnx.state(model)))
    return model


def run(model, ids, mask=None, **inputs):
    """The compiled network."""
    return _compiled(*nnx.split(model), ids, mask, inputs)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(graphdef, state, ids, mask, inputs):
    return nnx.merge(graphdef, state)(ids, mask, **inputs)


def tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(1, 99, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("model_type", FIELDS)
def test_packed_rows_equal_rows_of_their_own(model_type):
    model = network(model_type)
    lengths = (7, 1, 9)
    ids = tokens(3, 9)
    mask = np.arange(9)[None] < np.array(lengths)[:, None]
    packed = np.concatenate([ids[mask], np.zeros(3, np.int32)])[None]
    segments = np.repeat([1, 2, 3, 0], [*lengths, 3])[None]
    positions = np.concatenate([np.arange(length) for length in (*lengths, 3)])[None]
    together = run(model, packed, segment_ids=segments, position_ids=positions).logits
    apart = run(model, ids, mask).logits
    np.testing.assert_allclose(together[0, : sum(lengths)], apart[mask], atol=2e-5)


@pytest.mark.parametrize("model_type", FIELDS)
def test_pieces_with_a_cache_equal_the_whole(model_type):
    """Three calls, of 6, 1 and 4 tokens, in rows padded on the left, in a cache with room."""
    model = network(model_type)
    ids = tokens(3, 11)
    mask = np.ones((3, 11), np.int32)
    mask[1, :4] = 0
    mask[2, :7] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    whole = np.asarray(run(model, ids, mask, position_ids=positions).logits)

    cache = model.init_cache(3, 16)
    slots = np.concatenate([mask, np.ones((3, 5), np.int32)], axis=1)
    pieces = []
    for piece in (slice(0, 6), slice(6, 7), slice(7, 11)):
        output = run(model, ids[:, piece], slots, position_ids=positions[:, piece], cache=cache)
        cache = output.cache
        pieces.append(np.asarray(output.logits))
    assert int(cache["index"]) == 11
    difference = np.abs(np.concatenate(pieces, axis=1) - whole)[mask > 0]
    assert difference.max() <= 2e-5


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_positions_follow_the_cache(model_type):
    model = network(model_type)
    ids = tokens(2, 9)
    first = run(model, ids[:, :5], cache=model.init_cache(2, 9))
    second = run(model, ids[:, 5:], cache=first.cache)
    np.testing.assert_allclose(second.logits, run(model, ids).logits[:, 5:], atol=2e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "phi3"])
def test_dropout_needs_a_key(model_type):
    rates = {"embd_pdrop": 0.1, "resid_pdrop": 0.1}
    rates |= {"gpt2": {"attn_pdrop": 0.1}, "phi3": {"attention_dropout": 0.1}}[model_type]
    ids = tokens(2, 9)
    quiet = run(network(model_type), ids).logits
    for name, rate in rates.items():
        off = dict.fromkeys(rates, 0.0)
        model = network(model_type, **(off | {name: rate}))
        np.testing.assert_array_equal(run(model, ids).logits, quiet)
        dropped = [run(model, ids, key=jax.random.key(seed)).logits for seed in (0, 0, 1)]
        np.testing.assert_array_equal(dropped[0], dropped[1])
        assert not np.allclose(dropped[0], quiet), name
        assert not np.allclose(dropped[0], dropped[2]), name


@pytest.mark.parametrize("model_type", FIELDS)
def test_half_precision_stays_half_precision(model_type):
    compute = Compute(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model = abstract(model_type, compute=compute)
    graphdef, state = nnx.split(model)
    output = jax.eval_shape(lambda state: nnx.merge(graphdef, state)(tokens(1, 5)), state)
    assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype(jnp.bfloat16)}


def test_the_classifier_looks_at_the_last_token():
    ids = tokens(3, 9)
    mask = np.ones((3, 9), np.int32)
    mask[1, 5:] = 0
    for pad in (None, 0):
        model = network("llama", "sequence_classification", num_labels=4, pad_token_id=pad)
        padded = np.where(mask, ids, 0)
        logits = run(model, padded, mask).logits
        assert logits.shape == (3, 4)
        np.testing.assert_allclose(logits[1:2], run(model, ids[1:2, :5]).logits, atol=2e-5)
    # Without a mask and without a padding token, it is the last one.
    model = network("llama", "sequence_classification", pad_token_id=None)
    every = np.ones((3, 9), np.int32)
    np.testing.assert_allclose(run(model, ids).logits, run(model, ids, every).logits, atol=1e-6)


def test_calls_that_do_not_fit():
    model = network("llama")
    ids = tokens(1, 4)
    with pytest.raises(ValueError, match=r"attention_mask has 4 columns.*8 slots"):
        model(ids, np.ones((1, 4)), cache=model.init_cache(1, 8))
    with pytest.raises(ValueError, match="packed"):
        model(ids, segment_ids=np.ones((1, 4), np.int32), cache=model.init_cache(1, 8))
    bidirectional = network("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(ValueError, match="causal"):
        bidirectional(ids, cache=bidirectional.init_cache(1, 8))
    with pytest.raises(ValueError, match=r"65 tokens.*64 positions"):
        network("gpt2")(tokens(1, 65))


REFUSED = {
    "activation": ("llama", {"hidden_act": "softsign"}, "hidden_act = 'softsign'"),
    "gpt2 activation": (
        "gpt2",
        {"activation_function": "softsign"},
        "activation_function = 'softsign'",
    ),
    "rope type": (
        "llama",
        {"rope_scaling": {"type": "ntk-by-parts", "factor": 2.0}},
        "rope_type = 'ntk-by-parts'",
    ),
    "rope parameter": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}},
        r"mrope_section = \(1, 2\)",
    ),
    "rope factor missing": (
        "llama",
        {"rope_parameters": {"rope_type": "linear"}},
        "'linear' needs factor",
    ),
    "partial rotary": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    "rope per layer type": (
        "qwen2",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "full_attention",
    ),
    "interleaved rope": ("llama", {"rope_interleaved": True}, "rope_interleaved = True"),
    "odd heads": ("llama", {"head_dim": 9}, "heads of 9 features"),
    "heads that do not divide": (
        "llama",
        {"head_dim": None, "hidden_size": 34},
        "hidden_size = 34 is no multiple",
    ),
    "key heads that do not divide": ("llama", {"num_key_value_heads": 3}, "no multiple"),
    "gpt2 heads": ("gpt2", {"n_head": 5}, "n_embd = 32 is no multiple of n_head = 5"),
    "cross attention": ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
    "layer types where there are none": (
        "llama",
        {"layer_types": ["full_attention"]},
        "layer_types",
    ),
    "unknown layer type": (
        "qwen3",
        {"layer_types": ["full_attention", "chunked_attention"]},
        "'chunked_attention'. must be a list, each one of 'full_attention'",
    ),
    "too few layer types": ("qwen3", {"layer_types": ["full_attention"]}, "1 entries for 2 layers"),
    "window of no size": (
        "qwen2",
        {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
        "sliding_window is null",
    ),
    "phi3 rope type": (
        "phi3",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_type = 'linear'",
    ),
    "phi3 factors": (
        "phi3",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "short_factor has 1 entries",
    ),
    "phi3 bias": ("phi3", {"attention_bias": True}, "attention_bias = True"),
    "gemma two activations": ("gemma", {"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
    "gemma bidirectional": (
        "gemma",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention = True",
    ),
    "gemma3 cap": ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "gemma3 rope of no layer": (
        "gemma3_text",
        {"rope_parameters": {"rope_theta": 10.0}},
        "rope_parameters = 'rope_theta'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    model_type, fields, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        FAMILIES[model_type].parse_config(FIELDS[model_type] | fields)


# Fields that published files have beside those of a config written today.
PUBLISHED = {
    "gpt2": {
        "n_ctx": 1024,
        "n_special": 0,
        "predict_special_tokens": True,
        "output_past": True,
        "_num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "summary_activation": None,
        "summary_proj_to_labels": True,
        "summary_first_dropout": 0.1,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
    "llama": {
        "pretraining_tp": 1,
        "rope_theta": 100000,
        "rope_scaling": None,
        "rope_interleaved": False,
        "is_llama_config": True,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        "unsloth_fixed": True,
    },
    "mistral": {"sliding_window": None, "attention_dropout": 0.0, "rope_theta": 1000000.0},
    "qwen2": {"use_mrope": False, "rope_theta": 1000000.0, "sliding_window": 32768},
    "qwen3": {"attention_bias": False, "rope_scaling": None, "sliding_window": None},
    "phi3": {
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
        "sliding_window": 262144,
    },
    "gemma": {"hidden_act": "gelu", "hidden_activation": None, "rope_scaling": None},
    "gemma2": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "cache_implementation": "hybrid",
        "rope_theta": 10000.0,
    },
    "gemma3_text": {
        "_sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "use_bidirectional_attention": False,
    },
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_configs(model_type):
    FAMILIES[model_type].parse_config(FIELDS[model_type] | PUBLISHED[model_type])
