"""ALBERT against transformers."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from encoders import TINY, assert_same_head, batch, labels_of  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402

FIELDS = TINY | {"embedding_size": 12, "num_hidden_layers": 4}
SWITCHES = {
    "plain": {},
    "embeddings as wide as the rest": {"embedding_size": 32},
    "more layers than tensors": {"num_hidden_layers": 30},
    "two groups": {"num_hidden_groups": 2},
    "groups of unequal share": {"num_hidden_layers": 5, "num_hidden_groups": 2},
    "two blocks in a layer": {"inner_group_num": 2},
    "groups of blocks": {"num_hidden_groups": 2, "inner_group_num": 2},
    "relu, large epsilon": {"hidden_act": "relu", "layer_norm_eps": 1e-2},
}
HEADS = {
    "masked_lm": transformers.AlbertForMaskedLM,
    "sequence_classification": transformers.AlbertForSequenceClassification,
    "token_classification": transformers.AlbertForTokenClassification,
    "question_answering": transformers.AlbertForQuestionAnswering,
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_backbone(tmp_path, switch):
    torch.manual_seed(0)
    config = transformers.AlbertConfig(**(FIELDS | SWITCHES[switch]))
    inputs = batch()
    assert_same_network(
        tmp_path,
        transformers.AlbertModel(config),
        "pooled",
        inputs,
        outputs=("last_hidden_state", "pooled"),
        torch_names={"pooled": "pooler_output"},
        valid=inputs["attention_mask"],
    )


def test_left_padding(tmp_path):
    torch.manual_seed(0)
    config = transformers.AlbertConfig(**FIELDS)
    model = transformers.AlbertModel(config, add_pooling_layer=False)
    inputs = batch(left=True)
    assert_same_network(tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"])


@pytest.mark.parametrize("network", HEADS)
def test_published_head(tmp_path, network):
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        **FIELDS, num_labels=labels_of(network), hidden_act="relu", layer_norm_eps=1e-3
    )
    assert_same_head(tmp_path, HEADS[network](config), network, batch())


@pytest.mark.parametrize(
    "compute", [Compute(remat="block"), Compute(scan_layers=True)], ids=["remat", "scan"]
)
@pytest.mark.parametrize("inner", [1, 2])
def test_untied_masked_lm(tmp_path, compute, inner):
    torch.manual_seed(0)
    config = transformers.AlbertConfig(**FIELDS, tie_word_embeddings=False, inner_group_num=inner)
    model = transformers.AlbertForMaskedLM(config)
    assert_same_head(tmp_path, model, "masked_lm", batch(), compute=compute)
