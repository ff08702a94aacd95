"""Heads whose table is tied and whose decoder has a bias of its own, against transformers."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from encoders import TINY, batch  # noqa: E402

from ftjax.pretrained.export import export  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

# Our model_type -> transformers' name, and where its head is.
FAMILIES = {
    "bert": ("Bert", "cls.predictions"),
    "roberta": ("Roberta", "lm_head"),
    "albert": ("Albert", "predictions"),
    "mpnet": ("MPNet", "lm_head"),
    "deberta-v2": ("DebertaV2", "cls.predictions"),
}


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_is_added_is_the_decoder_s_bias(tmp_path, model_type, with_table):
    torch.manual_seed(0)
    name, head = FAMILIES[model_type]
    fields = TINY | ({"embedding_size": 32} if model_type == "albert" else {})
    kind = getattr(transformers, f"{name}ForMaskedLM")
    model = kind(getattr(transformers, f"{name}Config")(**fields))
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    biases = np.random.default_rng(0).normal(size=(2, len(tensors[f"{head}.bias"]))).astype("f")
    tensors |= {f"{head}.bias": biases[0], f"{head}.decoder.bias": biases[1]}
    if with_table:
        tensors[f"{head}.decoder.weight"] = model.get_input_embeddings().weight.detach().numpy()
    save_file(tensors, file, metadata={"format": "pt"})

    inputs = batch(token_types=False)
    ours = load_model(tmp_path / "base", "masked_lm")
    export(ours, "masked_lm", tmp_path / "base", tmp_path / "again")
    for folder in ("base", "again"):
        theirs = kind.from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            expected = theirs(**{n: torch.tensor(value) for n, value in inputs.items()}).logits
        difference = np.asarray(ours(**inputs).logits) - expected.numpy()
        assert abs(difference[inputs["attention_mask"] == 1]).max() <= 1e-5, folder
