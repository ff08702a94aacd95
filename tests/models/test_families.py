"""What holds for every family without torch to compare with: dtypes, dropout, refused configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ftjax.models import FAMILIES
from ftjax.models.layers import Compute
from ftjax.pretrained.load import with_dropout

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = TOWER | {"vocab_size": 30, "max_position_embeddings": 8}
VISION = TOWER | {"image_size": 8, "patch_size": 4}
BART = {
    "vocab_size": 30,
    "d_model": 16,
    "max_position_embeddings": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
}
T5 = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
CONFIGS = {
    "bart": BART,
    "mbart": BART,
    "marian": BART,
    "t5": T5,
    "mt5": T5,
    "vit": VISION,
    "deit": VISION,
    "dinov2": {k: v for k, v in VISION.items() if k != "intermediate_size"},
    "clip": {"text_config": TEXT, "vision_config": VISION},
    "clip_text_model": TEXT,
    "clip_vision_model": VISION,
    "siglip": {"text_config": TEXT, "vision_config": VISION},
    "siglip_text_model": TEXT,
    "siglip_vision_model": VISION,
}
# One network of each kind, with all parts that the kind has.
NETWORKS = [
    ("bart", "seq2seq_lm"),
    ("mbart", "backbone"),
    ("marian", "backbone"),
    ("t5", "seq2seq_lm"),
    ("vit", "pooled"),
    ("deit", "image_classification_with_teacher"),
    ("dinov2", "image_classification"),
    ("clip", "image_text"),
    ("siglip", "image_text"),
    ("siglip", "image_classification"),
]


def build(model_type, name, compute=Compute(), rate=None):  # noqa: B008
    family = FAMILIES[model_type]
    config = family.parse_config(CONFIGS[model_type])
    if rate is not None:
        config = with_dropout(config, rate)
    return family.networks[name](config, compute, rngs=nnx.Rngs(0))


def inputs(model_type, name):
    ids = jnp.array([[3, 4, 5, 6, 7], [8, 9, 2, 1, 1]])
    pixels = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    if name == "image_text":
        return {"input_ids": ids, "pixel_values": pixels}
    if name in ("text", "encoder") or "text" in model_type:
        return {"input_ids": ids}
    if "vocab_size" in CONFIGS[model_type]:
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"pixel_values": pixels}


@nnx.jit
def run(network, arguments, key=None):
    """The logits, or the first output of a network without."""
    output = network(**arguments, key=key)
    return output[0] if getattr(output, "logits", None) is None else output.logits


@pytest.mark.parametrize("model_type, name", NETWORKS)
def test_bfloat16_stays_bfloat16(model_type, name):
    """Under scan a promoted dtype is an error; cosines of a pair are float32 on purpose."""
    compute = Compute(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, scan_layers=True)
    network = build(model_type, name, compute)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    output = run(network, inputs(model_type, name))
    assert output.dtype == (jnp.float32 if name == "image_text" else jnp.bfloat16)
    assert jnp.isfinite(output).all()


@pytest.mark.parametrize("model_type, name", NETWORKS)
def test_a_key_turns_dropout_on(model_type, name):
    network, arguments = build(model_type, name, rate=0.5), inputs(model_type, name)
    plain = run(network, arguments)
    first, again, other = (run(network, arguments, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, plain)
    assert not np.allclose(first, other)
    without = run(build(model_type, name, rate=0.0), arguments, jax.random.key(0))
    np.testing.assert_allclose(without, plain, atol=1e-6)


# Fields that published files have beside those of a config written today.
PUBLISHED = {
    "t5": {"n_positions": 512, "output_past": True, "task_specific_params": {}},
    "mt5": {"tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer"},
    "bart": {
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "classif_dropout": 0.0,
        "classifier_dropout": 0.0,
        "do_blenderbot_90_layernorm": False,
        "encoder_layerdrop": 0.0,
        "extra_pos_embeddings": 2,
        "force_bos_token_to_be_generated": False,
        "normalize_before": False,
        "normalize_embedding": True,
        "num_hidden_layers": 2,
        "static_position_embeddings": False,
    },
    "mbart": {"add_final_layer_norm": True, "normalize_before": True, "init_std": 0.02},
    "marian": {
        "bad_words_ids": [[29]],
        "decoder_vocab_size": 30,
        "extra_pos_embeddings": 30,
        "normalize_embedding": False,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
    },
    "vit": {"encoder_stride": 16},
    "dinov2": {"out_features": ["stage2"], "out_indices": [2], "stage_names": ["stem"]},
    "clip": {
        "text_config": {"hidden_size": 7},
        "text_config_dict": TEXT
        | {
            "add_cross_attention": False,
            "dropout": 0,
            "eos_token_id": 2,
            "exponential_decay_length_penalty": None,
            "projection_dim": 16,
            "pruned_heads": {},
            "tf_legacy_loss": False,
            "tie_encoder_decoder": False,
            "tie_word_embeddings": True,
            "transformers_version": "4.24.0",
            "use_bfloat16": False,
        },
        "vision_config_dict": None,
    },
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_configs(model_type):
    config = FAMILIES[model_type].parse_config(CONFIGS[model_type] | PUBLISHED[model_type])
    if model_type == "clip":
        assert (config.text_config.hidden_size, config.text_config.eos_token_id) == (16, 2)


REFUSED = [
    ("t5", {"feed_forward_proj": "gated-swish2"}, "feed_forward_proj = 'gated-swish2'"),
    ("t5", {"is_gated_act": True}, "is_gated_act = True"),
    ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn = 'gelu'"),
    ("t5", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets = 2"),
    ("t5", {"num_hidden_layers": 3}, "num_hidden_layers = 3"),
    ("bart", {"normalize_before": True}, "normalize_before = True"),
    ("bart", {"encoder_attention_heads": 3}, "d_model = 16 is no multiple of encoder_attention"),
    ("bart", {"encoder_layerdrop": 0.1}, r"encoder_layerdrop = 0.1 \(only 0.0 works here\)"),
    ("marian", {"static_position_embeddings": False}, "static_position_embeddings = False"),
    ("vit", {"num_attention_heads": 3}, "hidden_size = 16 is no multiple of num_attention_heads"),
    ("vit", {"hidden_act": "cosh"}, "hidden_act = 'cosh'"),
    (
        "clip_text_model",
        {"eos_token_id": [1, 2]},
        r"eos_token_id = \(1, 2\) must be a whole number",
    ),
    ("clip", {"text_config": {"hidden_act": "cosh"}}, "hidden_act = 'cosh'"),
    ("siglip", {"vision_config": {"vision_use_heads": 1, "out_features": ["a"]}}, "out_features"),
]


@pytest.mark.parametrize("model_type, fields, words", REFUSED)
def test_refused_configs(model_type, fields, words):
    with pytest.raises(ValueError, match=words):
        FAMILIES[model_type].parse_config(CONFIGS[model_type] | fields)


@pytest.mark.parametrize("model_type", ["bart", "marian", "clip_text_model", "siglip_text_model"])
def test_a_text_longer_than_the_positions_is_refused(model_type):
    ids = jnp.ones((1, 9), jnp.int32)
    targets = {"decoder_input_ids": ids} if model_type in ("bart", "marian") else {}
    with pytest.raises(ValueError, match="9 tokens does not fit the 8 positions"):
        build(model_type, "backbone")(ids, **targets)


@pytest.mark.parametrize("model_type", ["clip_text_model", "siglip_text_model"])
def test_position_ids_beyond_the_table_are_refused(model_type):
    network, ids = build(model_type, "backbone"), jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="position_ids has 8; this network has the pos"):
        network(ids, position_ids=8 * ids)


def test_a_cache_longer_than_the_positions_is_refused():
    network = build("bart", "seq2seq_lm")
    encoder = network.encode(jnp.ones((1, 4), jnp.int32))
    with pytest.raises(ValueError, match="9 tokens does not fit the 8 positions"):
        network.decode(jnp.ones((1, 1), jnp.int32), encoder, cache=network.init_cache(1, 9))


def test_embeddings_may_stand_in_for_tokens():
    ids = jnp.array([[3, 4, 5]])
    for model_type in ("t5", "bart"):
        network = build(model_type, "backbone")
        embedded = network.embed_source(ids)
        np.testing.assert_array_equal(
            network(inputs_embeds=embedded, decoder_input_ids=ids).last_hidden_state,
            network(ids, decoder_input_ids=ids).last_hidden_state,
        )
    for model_type in ("clip_text_model", "siglip_text_model"):
        network = build(model_type, "backbone")
        embedded = network.embeddings.token_embedding(ids)
        np.testing.assert_array_equal(
            network(ids, inputs_embeds=embedded).pooled, network(ids).pooled
        )


def test_packed_rows_of_a_t5_encoder():
    network = build("t5", "encoder")
    ids = jnp.array([[3, 4, 5, 6, 7]])
    packed = network(ids, segment_ids=jnp.array([[0, 0, 1, 1, 1]])).last_hidden_state
    np.testing.assert_allclose(packed[:, :2], network(ids[:, :2]).last_hidden_state, atol=1e-6)
    np.testing.assert_allclose(packed[:, 2:], network(ids[:, 2:]).last_hidden_state, atol=1e-6)


def test_configs_are_frozen_and_hashable():
    for model_type, fields in CONFIGS.items():
        config = FAMILIES[model_type].parse_config(fields)
        hash(config)
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.hidden_act = "relu"
