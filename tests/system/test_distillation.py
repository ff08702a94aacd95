"""A tuned network teaches a smaller one, from file to result."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stopped import whole_and_continued
from tiny import quiet, write_splits

from ftjax.config import base_config, override
from ftjax.data.tokenizer import load_tokenizer
from ftjax.losses.forward import forward
from ftjax.pretrained.classifier import load_classifier
from ftjax.runs.folder import RunFolder
from ftjax.runs.report import print_result
from ftjax.training import phases
from ftjax.training.build import build
from ftjax.training.phases import with_teacher
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run
from ftjax.use.predict import Predictor


def sorted_by_first_word(index):
    number = (7 * index) % 40
    return {
        "text": f"word{number} word{index % 11} word{index % 5}",
        "label": ("low", "middle", "high")[number % 3],
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return write_splits(folder, sorted_by_first_word, train=60, validation=15, test=16)


@pytest.fixture(scope="module")
def settings(tiny_bert, texts):
    return {
        "name": "tiny",
        "model.reference": str(tiny_bert),
        "data.source": str(texts),
        "data.buckets": (16,),
        "data.batch_size": 16,
        "evaluation.batch_size": 16,
        "evaluation.baselines": False,
        "optimizer.learning_rate": 1e-2,
        "training.epochs": 6,
        "training.log_every": 1,
        "retention.enabled": False,
    }


@pytest.fixture(scope="module")
def teacher(settings, tmp_path_factory):
    """A classifier that was tuned and exported."""
    folder = tmp_path_factory.mktemp("teacher")
    run(override(base_config(), settings), folder / "run")
    finished = load_finished_run(folder / "run")
    finished.objective.export(finished.network, folder / "export")
    return folder / "export"


@pytest.fixture
def config_of(settings, teacher):
    def make(**fields):
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config(), settings | {"teacher.reference": str(teacher)} | fields)

    return make


def taught(config, folder):
    """Parts of a run, with what the teacher said."""
    parts = build(config)
    (folder / "run").mkdir(exist_ok=True)
    return with_teacher(config, RunFolder(folder / "run"), parts, quiet())


def test_a_teacher_is_learned_from_alone(config_of, teacher, tmp_path):
    """With nothing of the labels, what it knows is passed on."""
    config = config_of(teacher__alpha=1.0, teacher__temperature=1.0, training__epochs=12)
    console = quiet()
    result = run(config, tmp_path / "run", console)
    assert "Asking the teacher" in console.file.getvalue()
    steps = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    apart = [step["train/teacher_divergence"] for step in steps if "train/loss" in step]
    assert apart[-1] < apart[0] / 2
    assert steps[0]["train/loss"] == pytest.approx(apart[0], rel=1e-5)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "teacher" in str(manifest)
    print_result(console, result, "run")
    # Nothing of the teacher is needed to use the run.
    (found,) = Predictor(tmp_path / "run")([{"text": "word3 word1"}])
    assert found["label"] in ("low", "middle", "high")


def test_kept_and_live_teacher_are_one(config_of, teacher, tmp_path):
    """Loss and gradient."""
    config = config_of(teacher__beta=0.3, teacher__alpha=0.7, model__dropout=0.0)
    parts = taught(config, tmp_path)
    examples = parts.objective.examples["train"]
    batch = examples.batch(np.arange(16), rows=16, length=16)
    live = load_classifier(teacher)

    def loss(trainable, batch):
        def network(parameters, key):
            return parts.rebuild(parameters, parts.frozen)

        passed = forward(network, trainable, parts.frozen, batch, None)
        total, weight, _ = parts.objective.loss(passed)
        return total / weight

    kept = jax.value_and_grad(loss)(parts.trainable, batch)
    # Classes are in one order: both were found sorted.
    again = jax.value_and_grad(loss)(parts.trainable, batch | {"teacher_logits": live(batch)})
    assert float(kept[0]) == pytest.approx(float(again[0]), abs=1e-6)
    for path, gradient in kept[1].items():
        np.testing.assert_allclose(gradient, again[1][path], atol=1e-6)


def test_features_through_a_layer_that_is_not_exported(config_of, tmp_path):
    config = config_of(teacher__features=1.0, training__epochs=2)
    result = run(config, tmp_path / "run")
    steps = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    far = [s["train/teacher_feature_distance"] for s in steps if "train/loss" in s]
    assert far[-1] < far[0]
    finished = load_finished_run(tmp_path / "run")
    assert finished.network.projection is not None
    finished.objective.export(finished.network, tmp_path / "export")
    assert load_classifier(tmp_path / "export").projection is None
    assert result.metrics["test/accuracy"] > 0.3


def test_another_order_of_classes(config_of, teacher, tmp_path):
    """The teacher's logits are taken in the order of the data's classes."""
    first = taught(config_of(), tmp_path).objective.examples["train"].columns["teacher_logits"]
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    file = other / "2_Dense" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: np.ascontiguousarray(t[[2, 0, 1]]) for name, t in tensors.items()}, file)
    fields = json.loads((other / "config.json").read_text())
    names = [fields["id2label"][str(n)] for n in (2, 0, 1)]
    fields["id2label"] = {str(n): name for n, name in enumerate(names)}
    fields["label2id"] = {name: n for n, name in enumerate(names)}
    (other / "config.json").write_text(json.dumps(fields))
    (tmp_path / "second").mkdir()
    config = config_of(teacher__reference=str(other))
    second = taught(config, tmp_path / "second").objective.examples["train"].columns
    np.testing.assert_allclose(second["teacher_logits"], first, atol=1e-6)


def test_what_the_teacher_said_is_kept_and_made_again_if_damaged(config_of, tmp_path, monkeypatch):
    config = config_of()
    first = taught(config, tmp_path).objective.examples["train"].columns["teacher_logits"]
    loads = []
    original = phases.Measure

    def counted(*given):
        loads.append(given)
        return original(*given)

    monkeypatch.setattr(phases, "Measure", counted)
    again = taught(config, tmp_path).objective.examples["train"].columns["teacher_logits"]
    np.testing.assert_array_equal(first, again)
    assert not loads
    file = tmp_path / "run" / phases.TEACHER
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    again = taught(config, tmp_path).objective.examples["train"].columns["teacher_logits"]
    np.testing.assert_array_equal(first, again)
    assert loads


def test_stopped_and_started_again_ends_with_the_same_bits(config_of, tmp_path, monkeypatch):
    config = config_of(teacher__features=0.5, training__epochs=2, evaluation__every=2)
    whole_and_continued(config, tmp_path, monkeypatch, batch=4, step=2)


def test_head_alone(config_of, tmp_path):
    """Kept features of the network, beside what the teacher said."""
    config = config_of(tuning__method="linear_probe", training__epochs=2)
    assert run(config, tmp_path / "run").metrics["test/accuracy"] > 0.2


@pytest.fixture
def tokens_of(tiny_llama, texts):
    def make(objective, **fields):
        settings = {
            "name": "tiny",
            "model.reference": str(tiny_llama),
            "data.source": str(texts),
            "data.max_length": 16,
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "retention.enabled": False,
            "training.epochs": 1,
            "training.log_every": 1,
            "teacher.reference": str(tiny_llama),
        }
        if objective == "sft":
            settings |= {"data.format": "text"}
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config(objective), settings | fields)

    return make


@pytest.mark.parametrize("objective", ["causal_lm", "sft"])
def test_tokens_of_a_teacher(tokens_of, tiny_llama, objective, tmp_path):
    """A network that is its own teacher agrees with it at the start, but for what is not kept."""
    config = tokens_of(objective, teacher__top_k=9999, model__dropout=0.0)
    parts = taught(config, tmp_path)
    examples = parts.objective.examples["train"]
    length = 16
    batch = examples.batch(np.arange(2), rows=4, length=length)
    rows = load_tokenizer(tiny_llama).table_rows
    assert batch["teacher_ids"].shape == (4, length, rows)

    def network(parameters, key):
        return parts.rebuild(parameters, parts.frozen)

    passed = forward(network, parts.trainable, parts.frozen, batch, None)
    metrics = parts.objective.loss(passed)[2]
    apart, count = metrics["teacher_divergence"]
    assert float(apart / count) == pytest.approx(0, abs=1e-5)
    result = run(tokens_of(objective, teacher__top_k=3), tmp_path / "whole")
    assert np.isfinite(result.metrics["test/loss"])


def test_a_teacher_of_other_tokens_is_refused(tokens_of, tiny_llama, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    file = other / "tokenizer.json"
    fields = json.loads(file.read_text())
    vocabulary = fields["model"]["vocab"]
    vocabulary["word5"], vocabulary["word6"] = vocabulary["word6"], vocabulary["word5"]
    file.write_text(json.dumps(fields))
    config = tokens_of("causal_lm", teacher__reference=str(other))
    with pytest.raises(ValueError, match=r"another tokenizer: token number .* 'word5' .* number"):
        run(config, tmp_path / "run")


def test_other_teachers_that_are_refused(config_of, tiny_bert, teacher, tmp_path):
    with pytest.raises(ValueError, match="has no head of its own, and the data have the classes"):
        run(config_of(teacher__reference=str(tiny_bert)), tmp_path / "a")
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    fields = json.loads((other / "config.json").read_text())
    fields["id2label"]["0"] = "another"
    (other / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"knows .*another.*, and the data have the classes"):
        run(config_of(teacher__reference=str(other)), tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(config_of(teacher__reference=str(tmp_path / "nowhere")), tmp_path / "c")
    with pytest.raises(ValueError, match="learns through a layer beside a new head"):
        config = config_of(teacher__features=1.0, model__head="published")
        run(config, tmp_path / "d")
    with pytest.raises(ValueError, match="temperature is read only with"):
        override(base_config(), {"teacher.temperature": 3.0})


def test_a_teacher_that_changed_is_told(config_of, teacher, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    config = config_of(teacher__reference=str(other), training__epochs=1)
    run(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(fields | {"hidden_dropout_prob": 0.5}))
    with pytest.raises(ValueError, match="A run goes on only with what it began with"):
        run(config, tmp_path / "run")
