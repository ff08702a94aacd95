"""RoBERTa, XLM-RoBERTa and CamemBERT against transformers."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from encoders import TINY, assert_same_head, assert_same_positions, batch, labels_of  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402

SWITCHES = {
    "right padding": ({}, {}),
    "another padding token": ({"pad_token_id": 3}, {}),
    "one token type": ({"type_vocab_size": 1}, {"token_types": False}),
    "gelu_new": ({"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}, {}),
}
HEADS = {
    "masked_lm": "MaskedLM",
    "sequence_classification": "SequenceClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_backbone(tmp_path, switch):
    torch.manual_seed(0)
    fields, rows = SWITCHES[switch]
    config = transformers.RobertaConfig(**(TINY | fields))
    inputs = batch(pad_token_id=config.pad_token_id, **rows)
    assert_same_network(
        tmp_path,
        transformers.RobertaModel(config),
        "pooled",
        inputs,
        outputs=("last_hidden_state", "pooled"),
        torch_names={"pooled": "pooler_output"},
        valid=inputs["attention_mask"],
    )


@pytest.mark.parametrize("network", HEADS)
@pytest.mark.parametrize("name", ["Roberta", "XLMRoberta", "Camembert"])
def test_published_head(tmp_path, name, network):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **TINY, num_labels=labels_of(network), hidden_act="relu"
    )
    model = getattr(transformers, f"{name}For{HEADS[network]}")(config)
    assert_same_head(tmp_path, model, network, batch(pad_token_id=1))


@pytest.mark.parametrize(
    "compute", [Compute(remat="block"), Compute(scan_layers=True)], ids=["remat", "scan"]
)
def test_untied_masked_lm(tmp_path, compute):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**TINY, tie_word_embeddings=False)
    model = transformers.RobertaForMaskedLM(config)
    assert_same_head(tmp_path, model, "masked_lm", batch(pad_token_id=1), compute=compute)


def test_left_padding(tmp_path):
    torch.manual_seed(0)
    model = transformers.RobertaModel(transformers.RobertaConfig(**TINY), add_pooling_layer=False)
    inputs = batch(pad_token_id=1, left=True)
    assert_same_network(tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"])


def test_positions_count_no_padding_token_and_all_embedded_input(tmp_path):
    torch.manual_seed(0)
    assert_same_positions(tmp_path, transformers.RobertaModel(transformers.RobertaConfig(**TINY)))
