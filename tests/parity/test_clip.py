"""CLIP and SigLIP against transformers, on tiny random checkpoints."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = TOWER | {"vocab_size": 99, "max_position_embeddings": 20, "eos_token_id": 98}
VISION = TOWER | {"image_size": 24, "patch_size": 6}
PAIR_OUTPUTS = {
    "outputs": ("image_embeds", "text_embeds", "logits_per_image"),
    "hidden_states": False,
}


def texts():
    """Rows of different length that end in 98; 1 is padding."""
    random = np.random.default_rng(1)
    ids = random.integers(2, 90, (3, 17)).astype(np.int32)
    mask = np.ones_like(ids)
    for row, end in enumerate((16, 8, 2)):
        ids[row, end], ids[row, end + 1 :], mask[row, end + 1 :] = 98, 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def images(height=24, width=None, channels=3):
    random = np.random.default_rng(2)
    return random.normal(size=(2, height, width or height, channels)).astype(np.float32)


def tiny(name, **fields):
    """A random network of larger spread than the published start."""
    torch.manual_seed(0)
    family = "CLIP" if name.startswith("CLIP") else "Siglip"
    if "Text" in name:
        config = getattr(transformers, f"{family}TextConfig")(**(TEXT | fields))
    elif "Vision" in name:
        config = getattr(transformers, f"{family}VisionConfig")(**(VISION | fields))
    else:
        text = TEXT | fields.pop("text", {})
        vision = VISION | fields.pop("vision", {})
        config = getattr(transformers, f"{family}Config")(
            text_config=text, vision_config=vision, **fields
        )
    network = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            elif parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return network


def assert_same(folder, network, name, inputs, interpolate=False, **kwargs):
    theirs = dict(inputs)
    if "pixel_values" in inputs:
        theirs["pixel_values"] = inputs["pixel_values"].transpose(0, 3, 1, 2)
    if interpolate:
        theirs["interpolate_pos_encoding"] = True
    assert_same_network(folder, network, name, inputs, torch_inputs=theirs, **kwargs)


TEXTS = {
    "CLIPTextModel": {},
    "CLIPTextModel, end of text 2": {"eos_token_id": 2},
    "CLIPTextModel, gelu, one head": {
        "hidden_act": "gelu",
        "num_attention_heads": 1,
        "layer_norm_eps": 1e-2,
    },
    "SiglipTextModel": {},
    "SiglipTextModel, projection": {"projection_size": 20, "hidden_act": "quick_gelu"},
}


@pytest.mark.parametrize("switch", TEXTS)
def test_text_tower(tmp_path, switch):
    inputs = texts()
    if switch == "SiglipTextModel":
        del inputs["attention_mask"]
    assert_same(
        tmp_path,
        tiny(switch.split(",")[0], **TEXTS[switch]),
        "backbone",
        inputs,
        outputs=("last_hidden_state", "pooled"),
        torch_names={"pooled": "pooler_output"},
        valid=inputs.get("attention_mask"),
    )


VISIONS = {
    "CLIPVisionModel": ({}, images()),
    "CLIPVisionModel, gelu": ({"hidden_act": "gelu", "layer_norm_eps": 1e-2}, images()),
    "CLIPVisionModel, larger": ({}, images(36, 30)),
    "SiglipVisionModel": ({}, images()),
    "SiglipVisionModel, without head": ({"vision_use_head": False}, images()),
    "SiglipVisionModel, patch 14, smaller": ({"image_size": 70, "patch_size": 14}, images(42, 57)),
    "SiglipVisionModel, one channel": ({"num_channels": 1}, images(channels=1)),
}


@pytest.mark.parametrize("switch", VISIONS)
def test_vision_tower(tmp_path, switch):
    fields, pixels = VISIONS[switch]
    pooled = () if "without" in switch else ("pooled",)
    assert_same(
        tmp_path,
        tiny(switch.split(",")[0], **fields),
        "backbone",
        {"pixel_values": pixels},
        interpolate=pixels.shape[1:3] != (24, 24),
        outputs=("last_hidden_state", *pooled),
        torch_names={"pooled": "pooler_output"},
    )


PAIRS = {
    "CLIPModel": {"projection_dim": 20},
    "CLIPModel, widths": {"text": {"hidden_size": 24}, "projection_dim": 16},
    "SiglipModel": {},
    "SiglipModel, widths": {"text": {"hidden_size": 24, "projection_size": 32}},
}


@pytest.mark.parametrize("switch", PAIRS)
def test_pair(tmp_path, switch):
    network = tiny(switch.split(",")[0], **PAIRS[switch])
    inputs = texts() | {"pixel_values": images()}
    assert_same(tmp_path, network, "image_text", inputs, **PAIR_OUTPUTS)


@pytest.mark.parametrize("kind", ["CLIPForImageClassification", "SiglipForImageClassification"])
def test_classifier(tmp_path, kind):
    network = tiny(kind, num_labels=5)
    inputs = {"pixel_values": images()}
    assert_same(tmp_path, network, "image_classification", inputs, outputs=("logits",))


@pytest.mark.parametrize("kind", ["CLIPModel", "SiglipModel"])
def test_one_tower_of_a_pair(tmp_path, kind):
    network = tiny(kind).eval()
    network.save_pretrained(tmp_path)
    inputs, pixels = texts(), images()
    with torch.no_grad():
        text = network.text_model(**{name: torch.tensor(value) for name, value in inputs.items()})
        image = network.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2)))
    ours = load_model(tmp_path, "text")(**inputs)
    np.testing.assert_allclose(ours.pooled, text.pooler_output, atol=1e-5)
    ours = load_model(tmp_path)(pixels)
    np.testing.assert_allclose(ours.pooled, image.pooler_output, atol=1e-5)


def test_config_and_tensors_as_transformers_4_wrote_them(tmp_path):
    """Towers under a prefix of their own, position ids, and a `text_config_dict` that wins."""
    network = tiny("CLIPModel")
    network.save_pretrained(tmp_path)
    before = load_model(tmp_path, "text")(**texts()).pooled
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    fields |= {"text_config_dict": fields["text_config"], "vision_config_dict": None}
    fields["text_config"] = {"hidden_size": 7, "dropout": 0.0}
    path.write_text(json.dumps(fields))
    weights = load_file(tmp_path / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = np.arange(20)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(load_model(tmp_path, "text")(**texts()).pooled, before)
    towers = {name: value for name, value in weights.items() if name.startswith("text_model.")}
    save_file(towers, tmp_path / "model.safetensors", {"format": "pt"})
    path.write_text(json.dumps(fields["text_config_dict"]))
    np.testing.assert_array_equal(load_model(tmp_path)(**texts()).pooled, before)


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    inputs = texts() | {"pixel_values": images()}
    assert_same(tmp_path, tiny("CLIPModel"), "image_text", inputs, compute=compute, **PAIR_OUTPUTS)
