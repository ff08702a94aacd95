"""Whole runs on a tiny checkpoint: what they leave, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
from tiny import TINY, quiet

from ftjax.commands import predict
from ftjax.config import base_config, flatten, override
from ftjax.losses import classes
from ftjax.runs.folder import RunFolder
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.checkpoint import Checkpoints
from ftjax.training.loop import DivergedError
from ftjax.training.run import run
from ftjax.use.predict import Predictor


def small(config, **overrides):
    """Six steps, without what other tests look at."""
    settings = {"evaluation.baselines": False, "retention.enabled": False, "training.epochs": 1}
    return override(config, settings | {k.replace("__", "."): v for k, v in overrides.items()})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bert, tiny_texts):
    """One run with everything on, on four devices."""
    config = override(
        base_config(),
        {
            **TINY,
            "model.reference": str(tiny_bert),
            "data.source": str(tiny_texts),
            "data.buckets": (8, 16),
            "training.epochs": 6,
            "retention.source": str(tiny_texts),
            "retention.max_length": 16,
        },
    )
    folder = tmp_path_factory.mktemp("finished") / "run"
    console = quiet()
    result = run(config, folder, console)
    print_result(console, result, str(folder))
    return config, folder, result, console.file.getvalue()


def test_a_run_learns_and_says_what_it_cost(finished):
    _, _, result, output = finished
    metrics, cost = result.metrics, result.cost
    assert metrics["test/accuracy"] > metrics["test/majority/accuracy"] + 0.2
    assert set(metrics) >= {
        *("test/macro_f1", "test/loss", "test/tfidf_logistic_regression/macro_f1"),
        *("test/frozen_linear_head/accuracy", "validation/macro_f1"),
        *("retention/before", "retention/after", "retention/change"),
    }
    assert cost.compile_seconds > 0
    assert cost.trainable_parameters == cost.parameters
    for words in ("majority answer", "TF-IDF", "frozen network", "fine-tuned", "retention", "GiB"):
        assert words in output


def test_the_best_step_is_the_best_validation_of_metrics_jsonl(finished):
    config, folder, result, _ = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {n["step"]: n["validation/macro_f1"] for n in lines if "validation/macro_f1" in n}
    assert len(scores) == config.training.epochs
    assert scores[result.best_step] == max(scores.values())
    assert result.metrics["validation/macro_f1"] == pytest.approx(max(scores.values()))


def test_the_manifest_says_what_it_was_made_of(finished):
    config, folder, _, _ = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["datasets_sha256"]) >= {"train", "validation", "test"}
    assert len(manifest["weights_sha256"][config.model.reference]) == 64
    assert manifest["sessions"][0]["status"] == "finished"
    assert manifest["sessions"][0]["packages"]["jax"]
    assert len(manifest["sessions"][0]["devices"]) == 4


def test_a_finished_run_is_not_run_again(finished):
    config, folder, result, _ = finished
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert run(config, folder, quiet()) == result
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_config_in_the_same_folder_is_refused_with_the_fields(finished):
    config, folder, _, _ = finished
    other = override(config, {"optimizer.learning_rate": 5e-3, "training.epochs": 7})
    with pytest.raises(ValueError, match="holds a run with another config") as error:
        run(other, folder, quiet())
    assert "config.optimizer.learning_rate: 0.01 there, 0.005 now" in str(error.value)
    assert "config.training.epochs: 6.0 there, 7.0 now" in str(error.value)


def test_predictions_of_a_finished_run_are_those_of_its_test_scores(finished):
    config, folder, result, _ = finished
    parts = build(config)
    labels = parts.objective.labels["test"]
    predictor = Predictor(folder)
    records = [{"text": text} for (text,) in parts.objective.texts["test"]]
    logits = predictor.outputs(records)
    accuracy = (logits.argmax(-1) == labels).mean()
    assert accuracy == pytest.approx(result.metrics["test/accuracy"])
    np.testing.assert_allclose(predictor.outputs(records[:1]), logits[:1], atol=1e-5)
    first = predictor(records[:1])[0]
    assert first["label"] == "abc"[logits[0].argmax()]
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert predictor([]) == []
    with pytest.raises(ValueError, match="trained on single texts"):
        predictor([{"text": "a", "second_text": "b"}])


def test_predicting_with_an_unfinished_run(tmp_path, tiny_config):
    with RunFolder(tmp_path).claimed(flatten(tiny_config)):
        pass
    with pytest.raises(FileNotFoundError, match="not finished"):
        Predictor(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, tiny_config, monkeypatch):
    plain = classes.loss

    def poisoned(logits, batch, **settings):
        total, weight, metrics = plain(logits, batch, **settings)
        # Record 7 is poison.
        bad = (batch["example_ids"] == 7).any()
        return total + np.nan * bad, weight, metrics

    monkeypatch.setattr(classes, "loss", poisoned)
    config = small(tiny_config, training__checkpoint_every=1, seed=1)
    with pytest.raises(DivergedError, match=r"The loss is nan at step \d+") as error:
        run(config, tmp_path / "run", quiet())
    message = str(error.value)
    ids = message.partition("Its records: ")[2].partition(". ")[0].split(", ")
    # Counted from 1, as a person counts.
    assert "8" in ids
    step = int(message.partition("at step ")[2].partition(";")[0])
    with Checkpoints(tmp_path / "run" / "checkpoints", keep_last=9) as checkpoints:
        assert checkpoints.latest_step() == (step - 1 if step > 1 else -1)
    assert ("no checkpoint yet" if step == 1 else f"checkpoint is step {step - 1}") in message


def test_a_linear_probe_keeps_all_it_knew(tmp_path, tiny_config):
    config = override(tiny_config, {"tuning.method": "linear_probe", "training.epochs": 1})
    config = override(config, {"evaluation.baselines": False})
    result = run(config, tmp_path / "run", quiet())
    assert result.metrics["retention/change"] == 0.0
    assert result.cost.trainable_parameters == 16 * 3 + 3


def test_early_stopping(tmp_path, tiny_config):
    config = small(
        tiny_config,
        training__epochs=9,
        evaluation__patience=1,
        evaluation__every=1,
        optimizer__learning_rate=1e-9,
    )
    console = quiet()
    result = run(config, tmp_path / "run", console)
    assert result.steps < 9 * 6
    assert "Stopped early" in console.file.getvalue()


@pytest.mark.parametrize("parallel", ["mesh", "pmap"])
def test_mesh_and_pmap_runs_agree(tmp_path, tiny_config, parallel):
    config = small(tiny_config, training__parallel=parallel, model__dropout=0.0)
    config = override(config, {"model.head_dropout": 0.0})
    result = run(config, tmp_path / "run", quiet())
    alone = override(config, {"training.parallel": "mesh", "training.mesh.tensor": 4})
    expected = run(alone, tmp_path / "alone", quiet())
    for name, value in expected.metrics.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"model.reference": "/nowhere"}, FileNotFoundError, "There is no '/nowhere'"),
        ({"data.source": "/nowhere/{split}.csv"}, FileNotFoundError, "no data file"),
        ({"training.platform": "gpu"}, RuntimeError, "no such device"),
        ({"data.batch_size": 6}, ValueError, "multiple of the 4 devices"),
        (
            {"tuning.method": "prompt", "tuning.virtual_tokens": 24},
            ValueError,
            "Rows of 16 tokens do not fit. A row of 40 tokens does not fit the 32 positions",
        ),
        (
            {"retention.enabled": True, "retention.max_length": 33},
            ValueError,
            "Rows of 33 tokens do not fit. A row of 33 tokens does not fit the 32 positions",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path, tiny_config, overrides, error, message
):
    with pytest.raises(error, match=message):
        run(override(tiny_config, overrides), tmp_path / "run", quiet())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_unwritable_run_folder(tmp_path, tiny_config):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OSError, match=r"cannot be written .*--workdir"):
        run(tiny_config, blocked / "run", quiet())


def test_a_full_disk(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="is full"):
        run(tiny_config, tmp_path / "run", quiet())


def test_a_document_becomes_a_page(tmp_path, finished):
    _, folder, _, _ = finished
    (tmp_path / "document.txt").write_text("word1 word2 word3\n\nword21 word22\n")
    files = [f"--file={tmp_path / 'document.txt'}", f"--html={tmp_path / 'page.html'}"]
    with pytest.raises(SystemExit) as ended:
        predict.start(["predict", f"--run={folder}", *files])
    assert not ended.value.code
    page = (tmp_path / "page.html").read_text()
    assert page.count("<p style") == 2
    assert "word1 word2 word3</p>" in page and "<h1>document.txt</h1>" in page
