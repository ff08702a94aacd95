"""DeBERTa-v2 and -v3 against transformers."""

import numpy as np
import pytest
from safetensors.numpy import save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from encoders import TINY, assert_same_head, batch, labels_of  # noqa: E402

from ftjax.models import family_of  # noqa: E402
from ftjax.models.deberta_v2 import relative_index  # noqa: E402
from ftjax.models.layers import Compute  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

V3 = TINY | {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
SWITCHES = {
    "v3": {},
    "left padding": {},
    "only c2p": {"pos_att_type": ["c2p"]},
    "only p2c": {"pos_att_type": ["p2c"], "share_att_key": False},
    "own projections": {"share_att_key": False, "norm_rel_ebd": "none"},
    "no kind of relative attention": {"pos_att_type": None},
    "no buckets": {"position_buckets": -1},
    "distances beyond the table": {"position_buckets": -1, "max_relative_positions": 4},
    "buckets of fewer distances": {"max_relative_positions": 8},
    "more buckets than distances": {"position_buckets": 64},
    "absolute positions only": {"relative_attention": False, "position_biased_input": True},
    "token types": {"type_vocab_size": 2, "position_biased_input": True},
    "narrow embeddings": {"embedding_size": 12},
    "convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "grouped convolution": {"conv_kernel_size": 5, "conv_groups": 4},
}


def torch_config(**fields):
    return transformers.DebertaV2Config(**(V3 | fields))


@pytest.mark.parametrize("switch", SWITCHES)
def test_backbone(tmp_path, switch):
    torch.manual_seed(0)
    config = torch_config(**SWITCHES[switch])
    inputs = batch(left=switch == "left padding", token_types=config.type_vocab_size > 0)
    model = transformers.DebertaV2Model(config)
    assert_same_network(tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"])


@pytest.mark.parametrize(
    ("head", "network", "fields"),
    [
        ("MaskedLM", "masked_lm", {"embedding_size": 12}),
        ("MaskedLM", "masked_lm", {"tie_word_embeddings": False}),
        ("MaskedLM", "masked_lm", {"legacy": False}),
        ("SequenceClassification", "sequence_classification", {"pooler_hidden_act": "relu"}),
        ("TokenClassification", "token_classification", {}),
        ("QuestionAnswering", "question_answering", {}),
    ],
)
def test_published_head(tmp_path, head, network, fields):
    torch.manual_seed(0)
    config = torch_config(**fields, num_labels=labels_of(network))
    model = getattr(transformers, f"DebertaV2For{head}")(config)
    assert_same_head(tmp_path, model, network, batch(token_types=False))


@pytest.mark.parametrize(
    "compute", [Compute(remat="block"), Compute(scan_layers=True)], ids=["remat", "scan"]
)
def test_memory_switches_change_no_number(tmp_path, compute):
    torch.manual_seed(0)
    model = transformers.DebertaV2Model(torch_config(num_hidden_layers=3, conv_kernel_size=3))
    inputs = batch(token_types=False)
    assert_same_network(
        tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"], compute=compute
    )


def test_positions_that_a_checkpoint_holds_to_no_use(tmp_path):
    """As those of DeBERTa-v3 do."""
    torch.manual_seed(0)
    model = transformers.DebertaV2Model(torch_config()).eval()
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors["embeddings.position_embeddings.weight"] = np.ones((24, 32), np.float32)
    model.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    inputs = batch(token_types=False)
    with torch.no_grad():
        theirs = model(**{n: torch.tensor(v) for n, v in inputs.items()}).last_hidden_state
    difference = np.abs(load_model(tmp_path)(**inputs).last_hidden_state - theirs.numpy())
    assert (difference * inputs["attention_mask"][..., None]).max() <= 1e-5


@pytest.mark.parametrize(("buckets", "distances"), [(256, 512), (32, 512), (6, 24)])
def test_every_distance_falls_into_the_reference_bucket(buckets, distances):
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    fields = {"position_buckets": buckets, "max_position_embeddings": distances}
    config = family_of("deberta-v2").parse_config(fields)
    rows = torch.zeros(distances, 1)
    theirs = build_relative_position(rows, rows, buckets, distances)[0].numpy()
    theirs = np.clip(theirs + buckets, 0, 2 * buckets - 1)
    np.testing.assert_array_equal(relative_index(config, distances), theirs)
