"""DistilBERT against transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from encoders import assert_same_head, batch, labels_of  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

TINY = {
    "vocab_size": 99,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}
HEADS = {
    "masked_lm": transformers.DistilBertForMaskedLM,
    "sequence_classification": transformers.DistilBertForSequenceClassification,
    "token_classification": transformers.DistilBertForTokenClassification,
    "question_answering": transformers.DistilBertForQuestionAnswering,
}


@pytest.mark.parametrize("fields", [{}, {"activation": "relu"}, {"sinusoidal_pos_embds": True}])
def test_backbone(tmp_path, fields):
    torch.manual_seed(0)
    model = transformers.DistilBertModel(transformers.DistilBertConfig(**(TINY | fields)))
    inputs = batch(token_types=False, left=True)
    # No tables of sinusoids have a gradient, and ours are parameters all the same.
    model.embeddings.position_embeddings.weight.requires_grad_(True)
    assert_same_network(tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"])


@pytest.mark.parametrize("network", HEADS)
def test_published_head(tmp_path, network):
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(**TINY, num_labels=labels_of(network), activation="relu")
    assert_same_head(tmp_path, HEADS[network](config), network, batch(token_types=False))


@pytest.mark.parametrize(
    "compute", [Compute(remat="block"), Compute(scan_layers=True)], ids=["remat", "scan"]
)
def test_untied_masked_lm(tmp_path, compute):
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(**TINY, tie_word_embeddings=False)
    model = transformers.DistilBertForMaskedLM(config)
    assert_same_head(tmp_path, model, "masked_lm", batch(token_types=False), compute=compute)


def test_token_types_are_refused(tmp_path):
    transformers.DistilBertModel(transformers.DistilBertConfig(**TINY)).save_pretrained(tmp_path)
    ids = np.ones((1, 3), np.int32)
    with pytest.raises(ValueError, match="no token types"):
        load_model(tmp_path)(ids, token_type_ids=ids)
