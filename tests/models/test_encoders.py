"""What holds for the text encoders without torch to compare with: dtypes, refused configs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ftjax.models import FAMILIES
from ftjax.models.layers import Compute
from ftjax.pretrained.load import with_dropout

TINY = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}
DEBERTA = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 4}
CONFIGS = {
    "albert": TINY | {"embedding_size": 8},
    "bert": TINY,
    "roberta": TINY,
    "distilbert": {"vocab_size": 30, "dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2},
    "electra": TINY | {"embedding_size": 8},
    "modernbert": TINY,
    "mpnet": TINY,
    "deberta-v2": TINY | DEBERTA | {"conv_kernel_size": 3},
}


@pytest.mark.parametrize(
    "network",
    ["masked_lm", "sequence_classification", "token_classification", "question_answering"],
)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_bfloat16_stays_bfloat16(model_type, network):
    """Under scan a promoted dtype is an error."""
    family = FAMILIES[model_type]
    config = with_dropout(family.parse_config(CONFIGS[model_type]), 0.5)
    compute = Compute(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, scan_layers=True)
    model = family.networks[network](config, compute, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.bfloat16)}
    ids = jnp.array([[3, 4, 5, 6, 7]])

    def logits(state, key):
        return nnx.merge(graphdef, state)(ids, jnp.ones_like(ids), key=key).logits

    assert jax.eval_shape(logits, state, jax.random.key(0)).dtype == jnp.bfloat16


# The rate of the dropout in front of a published head.
HEAD_DROPOUT = [
    ("albert", "sequence_classification", "classifier_dropout"),
    ("albert", "token_classification", "classifier_dropout"),
    ("bert", "sequence_classification", "classifier_dropout"),
    ("bert", "token_classification", "classifier_dropout"),
    ("deberta-v2", "sequence_classification", "pooler_dropout"),
    ("deberta-v2", "sequence_classification", "classifier_dropout"),
    ("distilbert", "sequence_classification", "classifier_dropout"),
    ("distilbert", "question_answering", "qa_dropout"),
    ("electra", "sequence_classification", "classifier_dropout"),
    ("modernbert", "question_answering", "classifier_dropout"),
    ("mpnet", "sequence_classification", "classifier_dropout"),
]


@pytest.mark.parametrize(("model_type", "network", "rate"), HEAD_DROPOUT)
def test_a_head_has_dropout_of_its_own(model_type, network, rate):
    family = FAMILIES[model_type]
    none = with_dropout(family.parse_config(CONFIGS[model_type]), 0.0)

    def logits(config):
        model = family.networks[network](config, rngs=nnx.Rngs(0))
        return model(jnp.array([[3, 4, 5, 6, 7]]), key=jax.random.key(1)).logits

    assert jnp.any(logits(none) != logits(dataclasses.replace(none, **{rate: 0.5})))


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("roberta", {"num_attention_heads": 3}, "no multiple of num_attention_heads"),
        ("electra", {"is_decoder": True}, "is_decoder"),
        ("distilbert", {"activation": "cosh"}, r"config\.json: activation = 'cosh' must be"),
        ("distilbert", {"n_heads": 3}, "dim = 16 .* no multiple of n_heads = 3"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling"),
        ("modernbert", {"rope_parameters": {"rope_theta": 9.0}}, "key of rope_parameters"),
        ("albert", {"num_hidden_groups": 0}, "num_hidden_groups = 0 must be .* at least 1"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets = 16"),
        ("deberta-v2", {"conv_kernel_size": 4}, "must be odd"),
        ("deberta-v2", {"pos_att_type": "p2p"}, "pos_att_type"),
        ("deberta-v2", {"position_buckets": 1}, "cannot be halved"),
        ("deberta-v2", {"legacy": False, "embedding_size": 8}, "legacy = false needs"),
    ],
)
def test_refused(model_type, fields, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES[model_type].parse_config(CONFIGS[model_type] | fields)


@pytest.mark.parametrize(
    ("model_type", "fields", "longest", "message"),
    [
        ("bert", {}, 8, "9 tokens does not fit the 8 positions"),
        ("roberta", {"pad_token_id": 2}, 5, "6 tokens does not fit the 5 positions"),
        ("mpnet", {}, 6, "7 tokens does not fit the 6 positions"),
        ("deberta-v2", {"position_buckets": -1}, 8, "9 tokens does not fit the 8 positions"),
        (
            "deberta-v2",
            {"position_biased_input": False, "position_buckets": 20, "max_relative_positions": 4},
            11,
            "shorten the texts to 11 tokens",
        ),
    ],
)
def test_longest_row(model_type, fields, longest, message):
    """Positions out of a table would give NaN, not an error."""
    family = FAMILIES[model_type]
    model = family.networks["backbone"](
        family.parse_config(CONFIGS[model_type] | fields), rngs=nnx.Rngs(0)
    )
    ids = jnp.full((1, longest + 1), 5)
    assert jnp.all(jnp.isfinite(model(ids[:, :longest]).last_hidden_state))
    with pytest.raises(ValueError, match=message):
        model(ids)


def test_published_configs():
    """Fields that albert-base-v2 and all-mpnet-base-v2 have beside those they are computed by."""
    older = {"down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0}
    config = FAMILIES["albert"].parse_config(older | {"classifier_dropout_prob": 0.3})
    assert (config.classifier_dropout, config.hidden_size) == (0.3, 4096)
    config = FAMILIES["albert"].parse_config(
        {"classifier_dropout_prob": None, "hidden_dropout_prob": 0.2}
    )
    assert config.classifier_dropout == 0.2
    fields = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    assert FAMILIES["mpnet"].parse_config(fields).layer_norm_eps == 1e-5


@pytest.mark.parametrize("model_type", ["bert", "roberta", "deberta-v2"])
def test_position_ids_beyond_the_table(model_type):
    family = FAMILIES[model_type]
    config = family.parse_config(CONFIGS[model_type])
    model = family.networks["backbone"](config, rngs=nnx.Rngs(0))
    ids, most = jnp.full((1, 4), 5), config.max_position_embeddings
    assert jnp.all(jnp.isfinite(model(ids, position_ids=most - ids).last_hidden_state))
    for positions in (most + ids, -ids):
        with pytest.raises(ValueError, match=r"position_ids has -?\d+; this network has"):
            model(ids, position_ids=positions)
    # Where the ids are not known, the length is looked at.
    traced = jax.jit(lambda ids: model(ids, position_ids=ids))
    with pytest.raises(ValueError, match="tokens does not fit"):
        traced(jnp.zeros((1, most + 1), jnp.int32))
