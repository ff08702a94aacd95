"""The language model of networks that also see images, against transformers' logits for texts."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402

from ftjax.pretrained.export import export  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

TEXT = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
CLIP = VISION | {"model_type": "clip_vision_model", "projection_dim": 8}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}
LINEAR = {"rope_type": "linear", "factor": 2.0}
CASES = {
    "gemma3": {
        "text_config": TEXT
        | {"head_dim": 12, "sliding_window": 4, "rope_scaling": LINEAR, "num_hidden_layers": 6},
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
    },
    "llava": {"text_config": TEXT | {"model_type": "llama"}, "vision_config": CLIP},
    "llava_next": {
        "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
        "vision_config": CLIP,
    },
    "llava_onevision": {"text_config": TEXT | {"model_type": "qwen2"}, "vision_config": SIGLIP},
    "llava_next_video": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": CLIP,
        "video_token_index": 38,
    },
    "video_llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": CLIP,
        "video_token_index": 38,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral", "head_dim": 12},
        "vision_config": VISION | {"model_type": "pixtral"},
    },
    "internvl": {
        "text_config": TEXT | {"model_type": "qwen2"},
        "vision_config": VISION
        | {"model_type": "internvl_vision", "image_size": [8, 8], "patch_size": [4, 4]},
    },
    "vipllava": {
        "text_config": TEXT | {"model_type": "llama", "tie_word_embeddings": True},
        "vision_config": CLIP,
    },
}


@pytest.mark.parametrize("model_type", CASES)
def test_logits_of_texts(model_type, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type, **CASES[model_type], image_token_index=39, image_token_id=39
    )
    theirs = transformers.AutoModelForImageTextToText.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "whole")
    ids = np.random.default_rng(0).integers(1, 30, (2, 11))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    expected = theirs(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)
    ).logits.detach()
    said = []
    ours = load_model(tmp_path / "whole", "causal_lm", say=said.append)
    found = jax.jit(lambda: ours(ids, mask).logits)()
    real = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(found)[real], expected.numpy()[real], atol=2e-5)
    assert len(said) == 1
    assert f"of this {model_type} its language model" in said[0]
    assert "multi_modal_projector" in said[0]

    # What is exported is the language model alone, as transformers knows it.
    export(ours, "causal_lm", tmp_path / "whole", tmp_path / "text")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    logits = again(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.detach()
    np.testing.assert_allclose(logits.numpy()[real], expected.numpy()[real], atol=2e-5)
