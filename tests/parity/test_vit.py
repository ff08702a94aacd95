"""ViT, DeiT and DINOv2 against transformers, on tiny random checkpoints."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare import assert_same_network  # noqa: E402

from ftjax.models.layers import Compute  # noqa: E402
from ftjax.models.vision import cubic_weights  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 6,
    "initializer_range": 0.2,
}
TINY_DINO = {name: value for name, value in TINY.items() if name != "intermediate_size"}


def images(height, width=None, channels=3):
    random = np.random.default_rng(1)
    return random.normal(size=(2, height, width or height, channels)).astype(np.float32)


def randomise(network):
    """Norms, biases and tokens that transformers starts at one or zero."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or "lambda" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "token")):
                parameter.uniform_(-0.5, 0.5)
    return network


def assert_same(folder, network, name, pixels, interpolate=False, **kwargs):
    extra = {"interpolate_pos_encoding": True} if interpolate else {}
    assert_same_network(
        folder,
        randomise(network),
        name,
        {"pixel_values": pixels},
        torch_inputs={"pixel_values": pixels.transpose(0, 3, 1, 2), **extra},
        **kwargs,
    )


VIT = {
    "plain": ({}, images(24)),
    "gelu_new, one head, no bias": (
        {"hidden_act": "gelu_new", "num_attention_heads": 1, "qkv_bias": False},
        images(24),
    ),
    "one channel, epsilon": ({"num_channels": 1, "layer_norm_eps": 1e-2}, images(24, channels=1)),
    "remainder of a patch": ({"image_size": 27}, images(27)),
    "higher than wide": ({"image_size": [30, 18]}, images(30, 18)),
    "larger image": ({}, images(36, 30)),
    "smaller image": ({}, images(13, 20)),
}


@pytest.mark.parametrize("switch", VIT)
def test_vit(tmp_path, switch):
    fields, pixels = VIT[switch]
    torch.manual_seed(0)
    network = transformers.ViTModel(transformers.ViTConfig(**(TINY | fields)))
    assert_same(
        tmp_path,
        network,
        "pooled",
        pixels,
        interpolate="image" in switch,
        outputs=("last_hidden_state", "pooled"),
        torch_names={"pooled": "pooler_output"},
    )


def test_pooler_of_another_size(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**TINY, pooler_output_size=20, pooler_act="relu")
    assert_same(
        tmp_path,
        transformers.ViTModel(config),
        "pooled",
        images(24),
        outputs=("pooled",),
        torch_names={"pooled": "pooler_output"},
    )


@pytest.mark.parametrize(
    "kind, network",
    [
        ("ViTForImageClassification", "image_classification"),
        ("DeiTForImageClassification", "image_classification"),
        ("DeiTForImageClassificationWithTeacher", "image_classification_with_teacher"),
    ],
)
@pytest.mark.parametrize("size", [24, 36])
def test_classifiers(tmp_path, kind, network, size):
    torch.manual_seed(0)
    config_class = transformers.ViTConfig if kind.startswith("ViT") else transformers.DeiTConfig
    model = getattr(transformers, kind)(config_class(**TINY, num_labels=5))
    assert_same(tmp_path, model, network, images(size), size != 24, outputs=("logits",))


def test_two_labels_are_not_written_and_one_is(tmp_path):
    for labels in (1, 2):
        config = transformers.ViTConfig(**TINY, num_labels=labels)
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
        model = load_model(tmp_path, "image_classification")
        assert model(images(24)).logits.shape == (2, labels)


def test_backbone_of_a_deit_with_teacher(tmp_path):
    torch.manual_seed(0)
    model = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**TINY))
    randomise(model).save_pretrained(tmp_path)
    pixels = images(30)
    with torch.no_grad():
        theirs = model.deit(torch.tensor(pixels.transpose(0, 3, 1, 2)), None, True)
    ours = load_model(tmp_path)(pixels).last_hidden_state
    np.testing.assert_allclose(ours, theirs.last_hidden_state, atol=1e-5)


DINO = {
    "plain": ({}, 24),
    "swiglu": ({"use_swiglu_ffn": True}, 24),
    "swiglu, narrow": ({"use_swiglu_ffn": True, "mlp_ratio": 3, "qkv_bias": False}, 30),
    "no mask token, patch 14": ({"use_mask_token": False, "image_size": 70, "patch_size": 14}, 42),
    "relu, ratio 2": ({"hidden_act": "relu", "mlp_ratio": 2, "drop_path_rate": 0.1}, 20),
}


@pytest.mark.parametrize("switch", DINO)
def test_dinov2(tmp_path, switch):
    fields, size = DINO[switch]
    torch.manual_seed(0)
    network = transformers.Dinov2Model(transformers.Dinov2Config(**(TINY_DINO | fields)))
    assert_same(
        tmp_path,
        network,
        "backbone",
        images(size, size + 7),
        outputs=("last_hidden_state", "pooled"),
        torch_names={"pooled": "pooler_output"},
    )


def test_dinov2_classifier(tmp_path):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**TINY_DINO, num_labels=3)
    network = transformers.Dinov2ForImageClassification(config)
    assert_same(tmp_path, network, "image_classification", images(24), outputs=("logits",))


@pytest.mark.parametrize(
    "compute",
    [Compute(remat="block"), Compute(remat="dots"), Compute(scan_layers=True)],
    ids=["remat block", "remat dots", "scan"],
)
def test_memory_switches_change_no_number(tmp_path, compute):
    torch.manual_seed(0)
    network = transformers.Dinov2Model(transformers.Dinov2Config(**TINY_DINO))
    assert_same(tmp_path, network, "backbone", images(24), compute=compute)


@pytest.mark.parametrize("before, after", [(4, 4), (4, 7), (7, 4), (1, 3), (3, 1), (37, 16)])
def test_cubic_weights_are_torchs(before, after):
    theirs = torch.nn.functional.interpolate(
        torch.eye(before)[None, None], size=(before, after), mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(cubic_weights(before, after), theirs[0, 0].T, atol=1e-6)
