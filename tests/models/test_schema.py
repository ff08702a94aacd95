"""What values of config.json are refused; what transformers reads of it."""

import dataclasses
import math

import pytest

from ftjax.models import FAMILIES
from ftjax.models.distilbert import BERT_FIELDS, FIXED_FIELDS
from ftjax.models.reference import fields_read, is_default, rope_parameters_read
from ftjax.models.schema import depth

HOSTILE = {
    "hidden_size": ("16", 16.0, True, 0, -16, None, [16], 2**40),
    "num_hidden_layers": (0, 10**6, "2", 1.5),
    "layer_norm_eps": (math.nan, 0, -1e-6, math.inf, "1e-5", True, None, 10**400),
    "hidden_dropout_prob": (1.5, -0.1, math.nan, False),
    "tie_word_embeddings": ("no", 0, 1, None),
    "hidden_act": (3, None, ["gelu"], {}),
}


@pytest.mark.parametrize("field", HOSTILE)
def test_values_of_another_type_or_out_of_bounds(field):
    for value in HOSTILE[field]:
        with pytest.raises(ValueError, match=rf"config\.json: {field} = .* must be"):
            FAMILIES["bert"].parse_config({field: value})


def test_whole_numbers_stand_for_others():
    config = FAMILIES["bert"].parse_config({"hidden_dropout_prob": 0, "layer_norm_eps": 1e-5})
    assert config.hidden_dropout_prob == 0


LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "fields",
    [
        *({"rope_theta": value} for value in (0, -1e4, math.nan, math.inf, "10000", 1e300, True)),
        *({"rope_scaling": LINEAR | {"factor": v}} for v in (0, -2, math.nan, math.inf, "2", True)),
        *({"rope_parameters": value} for value in ("linear", 3, [LINEAR])),
        {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": "1"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": "no"}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2},
        {"id2label": 3},
    ],
)
def test_rope_parameters_that_are_none(fields):
    with pytest.raises(ValueError, match=r"config\.json: "):
        FAMILIES["llama"].parse_config(fields)


@pytest.mark.parametrize(
    ("fields", "longest"),
    [
        ({}, 2048),
        ({"rope_scaling": LINEAR}, 4096),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 8192),
        # Raised together with the factor, as most files have it.
        (
            {
                "max_position_embeddings": 8192,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 2048,
                },
            },
            8192,
        ),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 1024}}, 2048),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, None),
    ],
)
def test_a_scaling_stretches_the_longest_row(fields, longest):
    assert FAMILIES["llama"].parse_config(fields).longest_row == longest


def test_rope_parameters_that_nobody_reads_are_passed_over():
    said = []
    scaling = {"type": "yarn", "factor": 16.0, "finetuned": True}
    FAMILIES["llama"].parse_config({"rope_scaling": scaling}, say=said.append)
    assert said == [
        "config.json: passed over what transformers does not read for llama either: "
        "rope_scaling.finetuned."
    ]


def test_sentences_stay_short():
    said = []
    FAMILIES["bert"].parse_config({f"note_{n}": 1 for n in range(300)}, say=said.append)
    assert said[0].endswith(", note_19 and 280 more.")
    with pytest.raises(ValueError, match="quantization_config") as error:
        FAMILIES["bert"].parse_config({"quantization_config": {"skip": ["x" * 99] * 999}})
    assert len(str(error.value)) < 500


def test_rope_parameters_of_a_type_of_layer_are_kept():
    said = []
    rotary = {"rope_type": "default", "rope_theta": 77.0, "finetuned": True}
    parameters = {"sliding_attention": rotary, "full_attention": LINEAR}
    config = FAMILIES["gemma3_text"].parse_config({"rope_parameters": parameters}, say=said.append)
    assert config.local_rope_parameters.rope_theta == 77
    assert config.rope_parameters.factor == 2
    assert said[0].endswith("either: rope_parameters.sliding_attention.finetuned.")


def test_parts_of_a_pair_are_read_alike():
    said = []
    FAMILIES["clip"].parse_config({"text_config": {"note": 1}}, say=said.append)
    assert "note" in said[0]
    with pytest.raises(ValueError, match=r"is_decoder = True"):
        FAMILIES["clip"].parse_config({"text_config": {"is_decoder": True}})
    FAMILIES["clip"].parse_config({"text_config": {"is_decoder": True}}, accept=("is_decoder",))


# Fields that have another name in config.json, or that only older versions had.
OWN_NAMES = {
    *("rope_parameters", "local_rope_parameters", "full_rotary", "sliding_rotary", "hidden_act"),
    *("position_embedding_type", "scale_decoder_outputs", *BERT_FIELDS.values()),
}
# Fields of the config a family's derives from, which the reference does not read for it.
FIXED = {"distilbert": set(FIXED_FIELDS), "mpnet": {"type_vocab_size"}}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_a_family_uses_transformers_reads(model_type):
    """The reading of its sources finds what the families' tables say by hand."""
    read = fields_read(model_type)
    family = FAMILIES[model_type]
    ours = {field.name for field in dataclasses.fields(family.config)}
    assert ours - read <= OWN_NAMES | FIXED.get(model_type, set())
    assert not read & {"directionality", "pooler_type", "sentence_transformers", "eos_token_ids"}


def test_what_changes_the_computation_is_read():
    assert "conv_kernel_size" in fields_read("deberta-v2")
    assert "is_causal" in fields_read("llama")
    assert {"factor", "rope_theta", "short_factor"} <= rope_parameters_read()


def test_defaults_and_other_names():
    assert is_default("bart", "num_hidden_layers", {"num_hidden_layers": 12})
    fields = {"num_hidden_layers": 3, "encoder_layers": 3}
    assert is_default("bart", "num_hidden_layers", fields)
    assert not is_default("bart", "num_hidden_layers", fields | {"encoder_layers": 2})
    assert not is_default("llama", "is_causal", {"is_causal": False})


def test_depth_counts_the_layers_of_all_parts():
    assert depth(FAMILIES["clip"].parse_config({})) == 24
    assert depth(FAMILIES["t5"].parse_config({"num_layers": 2, "num_decoder_layers": 3})) == 5
