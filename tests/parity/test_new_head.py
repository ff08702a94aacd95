"""Heads that a checkpoint lacks against those that transformers' from_pretrained draws."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from encoders import TINY  # noqa: E402

from ftjax.models import family_of  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.pretrained.new_head import HeadedCheckpoint  # noqa: E402

WIDE = TINY | {"hidden_size": 64, "initializer_range": 0.1}
GPT2 = {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.1}
DISTILBERT = {"vocab_size": 99, "dim": 64, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
FIELDS = {
    "bert": WIDE,
    "roberta": WIDE,
    "xlm-roberta": WIDE,
    "camembert": WIDE,
    "distilbert": DISTILBERT | {"initializer_range": 0.1},
    "electra": WIDE | {"embedding_size": 12},
    "deberta-v2": WIDE,
    "modernbert": WIDE | {"num_hidden_layers": 4, "pad_token_id": 0},
    "gpt2": GPT2,
    "llama": WIDE,
    "qwen2": WIDE | {"num_key_value_heads": 4},
}
TASKS = {
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
}


@pytest.mark.parametrize(
    ("model_type", "task"),
    [(name, task) for name in FIELDS for task in TASKS if task in family_of(name).networks],
)
def test_the_same_tensors_are_new_and_as_large(tmp_path, model_type, task):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **FIELDS[model_type])
    config.pad_token_id = 0
    # As most backbones are published: without a pooler, before any task.
    base = transformers.AutoModel.from_config(config)
    if getattr(base, "pooler", None) is not None:
        base.pooler = None
    base.save_pretrained(tmp_path)
    classes = "ab" if task == "question_answering" else "abcdefg"
    theirs, report = TASKS[task].from_pretrained(
        tmp_path, num_labels=len(classes), output_loading_info=True
    )
    theirs = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}

    checkpoint = HeadedCheckpoint(tmp_path, task, classes, jax.random.key(0))
    prefix = family_of(model_type).prefix
    missing = {name.removeprefix(prefix): name for name in report["missing_keys"]}
    assert set(checkpoint.new) == set(missing)
    for name, tensor in checkpoint.new.items():
        other = theirs[missing[name]]
        assert tensor.shape == other.shape
        if np.ptp(other) == 0:
            np.testing.assert_array_equal(tensor, other)
            continue
        assert abs(tensor.std() / other.std() - 1) < 0.2, name
        assert abs(tensor.mean()) < 0.3 * other.std(), name
        assert np.abs(tensor).max() < 1.6 * np.abs(other).max(), name
    assert load_model(checkpoint, task).config.num_labels == len(classes)
