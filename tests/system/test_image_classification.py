"""Images sorted by a tiny network, from files to result, prediction and export."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from stopped import whole_and_continued
from tiny import quiet, write_checkpoint

from ftjax.config import base_config, override, validate
from ftjax.data.images import decoded
from ftjax.losses.forward import forward
from ftjax.models import FAMILIES
from ftjax.objectives.image_classification import ImageClassification
from ftjax.pretrained.load import load_model
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor

FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 32},
}


def painted(index):
    """Which of three colours is brightest says the class."""
    random = np.random.default_rng(index)
    pixels = random.integers(0, 90, (30 + index % 5, 34, 3))
    pixels[..., index % 3] += 120
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    write_checkpoint(folder, FAMILIES["dinov2"], FIELDS, "backbone")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files beside lists of them, one list per split."""
    folder = tmp_path_factory.mktemp("images")
    start = 0
    for split, count in (("train", 36), ("validation", 9), ("test", 12)):
        rows = []
        for index in range(start, start + count):
            name = f"{index}.{('png', 'jpg', 'bmp')[index % 3 if index % 4 else 0]}"
            Image.fromarray(painted(index)).save(folder / name)
            rows.append({"image": name, "label": ("red", "green", "blue")[index % 3]})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        start += count
    return folder


@pytest.fixture
def config_of(checkpoint, images):
    def make(**fields):
        settings = {
            "name": "tiny",
            "model.reference": str(checkpoint),
            "data.source": str(images / "{split}.jsonl"),
            "data.batch_size": 16,
            "evaluation.batch_size": 16,
            "optimizer.learning_rate": 3e-3,
            "training.epochs": 8,
            "training.log_every": 1,
        }
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("image_classification"), settings | fields)

    return make


def test_a_run_learns_to_sort(config_of, images, tmp_path):
    console = quiet()
    result = run(config_of(), tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/accuracy"] > 0.9
    assert metrics["test/top_5_accuracy"] == 1.0
    assert metrics["test/majority/accuracy"] < 0.5
    assert {"test/frozen_knn/accuracy", "test/frozen_linear_head/accuracy"} <= metrics.keys()
    assert result.details["classes"] == ["blue", "green", "red"]
    print_result(console, result, "run")
    assert "36 images of 28 x 28 pixels" in console.file.getvalue()
    predictor = Predictor(tmp_path / "run")
    found = predictor([{"image": str(images / "0.png")}, {"text": str(images / "4.png")}])
    assert found[0]["label"] == "red"
    finished = load_finished_run(tmp_path / "run")
    finished.objective.export(finished.network, tmp_path / "export")
    fields = json.loads((tmp_path / "export" / "config.json").read_text())
    assert fields["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    again = load_model(tmp_path / "export", "image_classification")
    assert again.classifier.kernel.shape[1] == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"tuning__method": "linear_probe"},
        {"tuning__method": "lora"},
        {"tuning__head_epochs": 1},
        {"augmentation__horizontal_flip": True, "augmentation__random_resized_crop": 0.5},
        {"augmentation__mixup": 0.4, "augmentation__cutmix": 1.0},
        {"augmentation__cutmix": 1.0, "tuning__method": "linear_probe"},
        {"data__image_size": 42},
    ],
)
def test_other_ways(config_of, tmp_path, fields):
    config = config_of(training__epochs=2, evaluation__baselines=False, **fields)
    assert run(config, tmp_path / "run").metrics["test/accuracy"] >= 0.2


def test_stopped_and_started_again_ends_with_the_same_bits(config_of, tmp_path, monkeypatch):
    config = config_of(
        training__epochs=2,
        evaluation__every=2,
        evaluation__baselines=False,
        augmentation__random_resized_crop=0.4,
        augmentation__mixup=0.4,
    )
    whole_and_continued(config, tmp_path, monkeypatch, batch=4, step=2)


def test_mixed_images_have_both_labels(config_of):
    """The loss is the mean of both cross-entropies, by their shares; of rows that count alone."""
    parts = build(config_of(augmentation__mixup=1.0))
    objective = parts.objective
    examples = objective.examples["train"]
    batch = examples.batch(np.arange(7), rows=12, length=1)
    mixed = objective.augmented(batch, jax.random.key(0))
    assert set(np.unique(mixed["other_labels"][:7])) <= set(np.unique(batch["labels"][:7]))
    shares = np.asarray(mixed["label_shares"])[:7]
    assert ((shares >= 0) & (shares <= 1)).all()
    assert len(np.unique(shares)) == 7

    def network(parameters, key):
        return parts.rebuild(parameters, parts.frozen)

    passed = forward(network, parts.trainable, parts.frozen, mixed, None)
    total, weight, _ = objective.loss(passed)
    logits = np.asarray(passed.outputs, np.float64)[:7]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    first = -logs[np.arange(7), batch["labels"][:7]]
    second = -logs[np.arange(7), np.asarray(mixed["other_labels"])[:7]]
    expected = (shares * first + (1 - shares) * second).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(weight) == 7
    # Pixels are what the shares say: of each row its own and one other's.
    own = batch["pixel_values"][:7].astype(np.float64)
    for row in range(7):
        rest = np.asarray(mixed["pixel_values"])[row] - shares[row] * own[row]
        others = [np.abs(rest - (1 - shares[row]) * other).max() for other in own]
        assert min(others) < 0.01


def test_the_mesh_changes_no_image(config_of):
    """Each image is changed by its own number, whatever the row it stands in."""
    objective = build(config_of(augmentation__random_resized_crop=0.3)).objective
    examples, key = objective.examples["train"], jax.random.key(1)
    first = objective.augmented(examples.batch(np.arange(6), rows=6, length=1), key)
    second = objective.augmented(examples.batch(np.arange(6)[::-1], rows=8, length=1), key)
    np.testing.assert_array_equal(first["pixel_values"], second["pixel_values"][:6][::-1])


@pytest.mark.parametrize(
    "value",
    [
        painted(3),
        painted(3).tolist(),
        painted(3)[..., 0].tolist(),
        {"bytes": None, "path": "here.png"},
        "here.png",
    ],
)
def test_images_as_records_hold_them(tmp_path, value):
    Image.fromarray(painted(3)).save(tmp_path / "here.png")
    content = (tmp_path / "here.png").read_bytes()
    found = np.asarray(decoded(value, tmp_path).convert("RGB"))
    grey = np.ndim(value) == 2 if not isinstance(value, str | dict) else False
    expected = np.repeat(painted(3)[..., :1], 3, axis=-1) if grey else painted(3)
    np.testing.assert_array_equal(found, expected)
    for whole in (content, {"bytes": content, "path": None}):
        np.testing.assert_array_equal(np.asarray(decoded(whole, tmp_path)), painted(3))


def with_alpha(lowest):
    pixels = np.concatenate([painted(0), np.full((*painted(0).shape[:2], 1), 255, np.uint8)], -1)
    pixels[0, 0, 3] = lowest
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def test_bad_images(config_of, images, tmp_path):
    """Refused with their line, or left out and counted."""
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:60])
    (images / "glass.png").write_bytes(with_alpha(0))
    (images / "text.png").write_text("no image")
    lines = (images / "train.jsonl").read_text().splitlines()
    bad = {
        "broken.png": "cannot be read",
        "glass.png": "can be seen through",
        "text.png": "cannot be read",
        "nowhere.png": "there is no file",
    }

    def objective_of(names, **fields):
        chosen = list(lines)
        for place, name in enumerate(names):
            chosen.insert(5 + place, json.dumps({"image": name, "label": "red"}))
        (images / "some_train.jsonl").write_text("\n".join(chosen))
        for split in ("validation", "test"):
            content = (images / f"{split}.jsonl").read_text()
            (images / f"some_{split}.jsonl").write_text(content)
        config = config_of(data__source=str(images / "some_{split}.jsonl"), **fields)
        return ImageClassification(config, Path(config.model.reference))

    for name, message in bad.items():
        with pytest.raises(ValueError, match=rf"train\.jsonl, line 6: .*{message}"):
            objective_of([name]).read()
    objective = objective_of(list(bad)[:3], data__on_bad_record="skip")
    objective.read()
    assert objective.left_out == 3
    assert len(objective.examples["train"].pixels) == len(lines)
    # A channel that hides nothing is none.
    assert decoded(with_alpha(255), tmp_path).convert("RGB").size == (34, 30)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augmentation__mixup": 0.2, "optimizer__accumulation_steps": 2}, "would divide it"),
        ({"augmentation__cutmix": 0.2, "training__parallel": "pmap"}, "would divide it"),
        ({"data__image_processor": "nowhere.json"}, r"There is no nowhere\.json"),
        ({"data__image_field": "picture"}, "no field 'picture'"),
    ],
)
def test_refused(config_of, fields, message):
    config = config_of(**fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        validate(config)
        build(config)


def test_networks_that_see_nothing(config_of, tiny_bert, checkpoint, tmp_path):
    file = str(checkpoint / "preprocessor_config.json")
    with pytest.raises(ValueError, match="family bert sorts no images"):
        build(config_of(model__reference=str(tiny_bert), data__image_processor=file))
    with pytest.raises(FileNotFoundError, match="nothing says how the network wants images"):
        build(config_of(model__reference=str(tiny_bert)))
