"""BERT's published heads against transformers."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from encoders import TINY, assert_same_head, batch, labels_of  # noqa: E402

from ftjax.pretrained.load import load_model  # noqa: E402

HEADS = {
    "masked_lm": transformers.BertForMaskedLM,
    "sequence_classification": transformers.BertForSequenceClassification,
    "token_classification": transformers.BertForTokenClassification,
    "question_answering": transformers.BertForQuestionAnswering,
}


@pytest.mark.parametrize("network", HEADS)
def test_published_head(tmp_path, network):
    torch.manual_seed(0)
    config = transformers.BertConfig(**TINY, num_labels=labels_of(network), hidden_act="relu")
    assert_same_head(tmp_path, HEADS[network](config), network, batch())


def test_untied_masked_lm(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(**TINY, tie_word_embeddings=False)
    assert_same_head(tmp_path, transformers.BertForMaskedLM(config), "masked_lm", batch())


def test_masked_lm_of_a_checkpoint_with_both_pretraining_heads(tmp_path):
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**TINY))
    model.save_pretrained(tmp_path / "both")

    # The files of the first published models have these names of TensorFlow.
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    path = tmp_path / "both" / "model.safetensors"
    tensors = load_file(path)
    for name in list(tensors):
        for ending in (e for e in older if name.endswith(e)):
            new = name.replace(ending, older[ending])
            tensors[new] = tensors.pop(name) + np.random.default_rng(0).normal(size=32).astype("f")
    save_file(tensors, path, metadata={"format": "pt"})
    masked = transformers.BertForMaskedLM.from_pretrained(tmp_path / "both").eval()

    inputs = batch()
    ours = load_model(tmp_path / "both", "masked_lm")(**inputs).logits
    with torch.no_grad():
        theirs = masked(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    assert abs(ours - theirs.numpy()).max() <= 1e-5
