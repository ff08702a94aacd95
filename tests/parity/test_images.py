"""From the bytes of a file to logits, against transformers' processors and networks."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_vit import TINY, TINY_DINO, randomise  # noqa: E402

from ftjax.data.images import decoded, load_processor  # noqa: E402
from ftjax.evaluation.baselines import nearest_neighbours  # noqa: E402
from ftjax.models.image_classifier import ImageClassifier  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PROCESSORS = {
    "crop of the shortest edge": {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 30},
        "do_center_crop": True,
        "crop_size": {"height": 24, "width": 24},
        "resample": 3,
    },
    "squeezed": {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 24, "width": 24},
        "resample": 2,
    },
}
NETWORKS = {
    "vit": (transformers.ViTConfig, transformers.ViTForImageClassification, TINY),
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2ForImageClassification, TINY_DINO),
}


def files():
    """Bytes of images of several kinds and sizes."""
    random, found = np.random.default_rng(0), {}
    pixels = random.integers(0, 256, (41, 57, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(pixels).resize((200, 90), 3))
    for name, image, kind in (
        ("png", Image.fromarray(pixels), "png"),
        ("jpeg", Image.fromarray(smooth), "jpeg"),
        ("grey", Image.fromarray(pixels[..., 0]), "png"),
        ("palette", Image.fromarray(smooth).convert("P"), "png"),
        ("tiny", Image.fromarray(pixels[:5, :3]), "png"),
        ("opaque", Image.fromarray(pixels).convert("RGBA"), "png"),
    ):
        content = io.BytesIO()
        image.save(content, kind)
        found[name] = content.getvalue()
    return found


FILES = files()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("family", NETWORKS)
def test_bytes_to_logits(tmp_path, family, processor, file):
    config, network, fields = NETWORKS[family]
    torch.manual_seed(0)
    model = randomise(network(config(**fields, num_labels=4))).eval()
    settings = PROCESSORS[processor] | {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "do_convert_rgb": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model.save_pretrained(tmp_path)

    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = Image.open(io.BytesIO(FILES[file])).convert("RGB")
    inputs = theirs(image, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()

    ours = load_processor(tmp_path, None, None)
    pixels = ours(decoded(FILES[file], tmp_path))
    assert pixels.dtype == np.uint8
    wrapped = ImageClassifier(
        load_model(tmp_path, "image_classification"), ours.scale, ours.mean, ours.deviation
    )
    found = np.asarray(wrapped({"pixel_values": pixels[None]}))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_another_size_keeps_what_is_cut_off(tmp_path):
    settings = PROCESSORS["crop of the shortest edge"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = load_processor(tmp_path, None, 48)
    assert processor.processor.size["shortest_edge"] == 60
    assert processor(decoded(FILES["jpeg"], tmp_path)).shape == (48, 48, 3)


@pytest.mark.parametrize("count", [1, 7, 20])
def test_nearest_neighbours_against_sklearn(count):
    random = np.random.default_rng(0)
    train, test = random.normal(size=(60, 8)), random.normal(size=(30, 8))
    labels = random.integers(0, 4, 60)

    def votes(distances):
        return np.exp(-distances / 0.07)

    reference = KNeighborsClassifier(count, metric="cosine", weights=votes, algorithm="brute")
    expected = reference.fit(train, labels).predict(test)
    np.testing.assert_array_equal(
        nearest_neighbours((train, labels), test, 4, count=count), expected
    )
