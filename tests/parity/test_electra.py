"""ELECTRA against transformers."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from encoders import TINY, assert_same_head, batch, labels_of  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402

HEADS = {
    "masked_lm": transformers.ElectraForMaskedLM,
    "replaced_token_detection": transformers.ElectraForPreTraining,
    "sequence_classification": transformers.ElectraForSequenceClassification,
    "token_classification": transformers.ElectraForTokenClassification,
    "question_answering": transformers.ElectraForQuestionAnswering,
}


@pytest.mark.parametrize("width", [12, 32])
def test_backbone(tmp_path, width):
    torch.manual_seed(0)
    config = transformers.ElectraConfig(**TINY, embedding_size=width)
    inputs = batch(left=True)
    model = transformers.ElectraModel(config)
    assert_same_network(tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"])


@pytest.mark.parametrize("network", HEADS)
def test_published_head(tmp_path, network):
    torch.manual_seed(0)
    config = transformers.ElectraConfig(
        **TINY,
        embedding_size=12,
        num_labels=labels_of(network),
        hidden_act="relu",
        layer_norm_eps=1e-3,
    )
    assert_same_head(tmp_path, HEADS[network](config), network, batch())


@pytest.mark.parametrize(
    "compute", [Compute(remat="block"), Compute(scan_layers=True)], ids=["remat", "scan"]
)
def test_untied_masked_lm(tmp_path, compute):
    torch.manual_seed(0)
    config = transformers.ElectraConfig(**TINY, embedding_size=12, tie_word_embeddings=False)
    model = transformers.ElectraForMaskedLM(config)
    assert_same_head(tmp_path, model, "masked_lm", batch(), compute=compute)
