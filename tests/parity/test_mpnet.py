"""MPNet against transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from encoders import TINY, assert_same_head, assert_same_positions, batch, labels_of  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402

SWITCHES = {
    "plain": {},
    "as all-mpnet-base-v2": {"layer_norm_eps": 1e-5, "pad_token_id": 1},
    "another padding token, of no effect": {"pad_token_id": 3},
    "more buckets than are used": {"relative_attention_num_buckets": 40},
    "gelu_new": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
}
HEADS = {
    "masked_lm": transformers.MPNetForMaskedLM,
    "sequence_classification": transformers.MPNetForSequenceClassification,
    "token_classification": transformers.MPNetForTokenClassification,
    "question_answering": transformers.MPNetForQuestionAnswering,
}


def rows(**options):
    return batch(token_types=False, pad_token_id=1, **options)


@pytest.mark.parametrize("switch", SWITCHES)
def test_backbone(tmp_path, switch):
    torch.manual_seed(0)
    config = transformers.MPNetConfig(**(TINY | SWITCHES[switch]))
    inputs = rows()
    assert_same_network(
        tmp_path,
        transformers.MPNetModel(config),
        "pooled",
        inputs,
        outputs=("last_hidden_state", "pooled"),
        torch_names={"pooled": "pooler_output"},
        valid=inputs["attention_mask"],
    )


def test_left_padding(tmp_path):
    torch.manual_seed(0)
    config = transformers.MPNetConfig(**TINY)
    model = transformers.MPNetModel(config, add_pooling_layer=False)
    inputs = rows(left=True)
    assert_same_network(tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"])


def test_every_distance_in_its_bucket(tmp_path):
    """From far beyond the last bucket on one side to as far on the other."""
    torch.manual_seed(0)
    config = transformers.MPNetConfig(**(TINY | {"max_position_embeddings": 320}))
    model = transformers.MPNetModel(config)
    inputs = rows(length=300)
    valid = inputs["attention_mask"]
    ours = assert_same_network(tmp_path, model, "pooled", inputs, valid=valid)
    theirs = model.encoder.compute_position_bias(torch.zeros(1, 300, 1)).detach().numpy()
    np.testing.assert_array_equal(ours.encoder.score_bias(300), theirs)


@pytest.mark.parametrize("network", HEADS)
def test_published_head(tmp_path, network):
    torch.manual_seed(0)
    config = transformers.MPNetConfig(
        **TINY, num_labels=labels_of(network), hidden_act="relu", layer_norm_eps=1e-3
    )
    assert_same_head(tmp_path, HEADS[network](config), network, rows())


@pytest.mark.parametrize(
    "compute", [Compute(remat="block"), Compute(scan_layers=True)], ids=["remat", "scan"]
)
def test_untied_masked_lm(tmp_path, compute):
    torch.manual_seed(0)
    config = transformers.MPNetConfig(**TINY, tie_word_embeddings=False)
    model = transformers.MPNetForMaskedLM(config)
    assert_same_head(tmp_path, model, "masked_lm", rows(), compute=compute)


def test_positions_count_no_padding_token_and_all_embedded_input(tmp_path):
    torch.manual_seed(0)
    assert_same_positions(tmp_path, transformers.MPNetModel(transformers.MPNetConfig(**TINY)))
