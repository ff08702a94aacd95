"""ModernBERT against transformers."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from encoders import TINY, assert_same_head, batch, labels_of  # noqa: E402

from ftjax.models import family_of  # noqa: E402
from ftjax.models.layers import Compute  # noqa: E402

FIELDS = TINY | {
    "num_hidden_layers": 4,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
SWITCHES = {
    "right padding": {},
    "left padding": {},
    "all biases": {"norm_bias": True, "attention_bias": True, "mlp_bias": True},
    "relu, large epsilon": {"hidden_activation": "relu", "norm_eps": 1e-2},
    "odd window": {"local_attention": 5},
    "given layer types": {
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"]
    },
    "own rotary bases": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 100.0},
            "sliding_attention": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
        }
    },
}
HEADS = {
    "masked_lm": transformers.ModernBertForMaskedLM,
    "sequence_classification": transformers.ModernBertForSequenceClassification,
    "token_classification": transformers.ModernBertForTokenClassification,
    "question_answering": transformers.ModernBertForQuestionAnswering,
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_backbone(tmp_path, switch):
    torch.manual_seed(0)
    model = transformers.ModernBertModel(
        transformers.ModernBertConfig(**(FIELDS | SWITCHES[switch]))
    )
    inputs = batch(token_types=False, left=switch == "left padding")
    assert_same_network(tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"])


@pytest.mark.parametrize(
    ("network", "fields"),
    [
        ("masked_lm", {"classifier_bias": True, "norm_bias": True}),
        ("masked_lm", {"decoder_bias": False, "classifier_activation": "relu"}),
        ("masked_lm", {"tie_word_embeddings": False}),
        ("sequence_classification", {"classifier_pooling": "cls"}),
        ("sequence_classification", {"classifier_pooling": "mean", "classifier_bias": True}),
        ("token_classification", {}),
        ("question_answering", {"classifier_bias": True}),
    ],
)
def test_published_head(tmp_path, network, fields):
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**FIELDS, **fields, num_labels=labels_of(network))
    assert_same_head(tmp_path, HEADS[network](config), network, batch(token_types=False))


@pytest.mark.parametrize(
    "compute", [Compute(remat="block"), Compute(scan_layers=True)], ids=["remat", "scan"]
)
def test_memory_switches_change_no_number(tmp_path, compute):
    torch.manual_seed(0)
    model = transformers.ModernBertModel(transformers.ModernBertConfig(**FIELDS))
    inputs = batch(token_types=False)
    assert_same_network(
        tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"], compute=compute
    )


def test_fields_of_older_versions():
    """The spelling that transformers 4 wrote gives the network that transformers 5 makes of it."""
    older = {
        "num_hidden_layers": 5,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 1000.0,
        "local_rope_theta": 20.0,
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "absolute",
        "reference_compile": None,
    }
    newer = json.loads(transformers.ModernBertConfig(**older).to_json_string())
    family = family_of("modernbert")
    config = family.parse_config(older)
    assert config.layer_types == tuple(newer["layer_types"])
    assert config.full_rotary.rope_theta == newer["rope_parameters"]["full_attention"]["rope_theta"]
    assert (
        config.sliding_rotary.rope_theta
        == newer["rope_parameters"]["sliding_attention"]["rope_theta"]
    )
    assert family.parse_config(older | {"local_rope_theta": None}).sliding_rotary.rope_theta == 1000
