"""Whole runs in which methods, penalties, stages and averages meet."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny import quiet

from ftjax.config import base_config, override, validate
from ftjax.pretrained.adapter import load_adapter
from ftjax.pretrained.compare import merged_and_compared
from ftjax.pretrained.load import load_model
from ftjax.runs.folder import RunFolder
from ftjax.runs.report import print_result
from ftjax.training.build import Parts, build
from ftjax.training.checkpoint import Checkpoints
from ftjax.training.run import run
from ftjax.use.finished import load_finished_run


@pytest.fixture
def config(tiny_config):
    return override(tiny_config, {"evaluation.baselines": False, "training.epochs": 2})


@pytest.fixture
def with_everything(config, tiny_texts):
    general = {"penalties.source": str(tiny_texts), "penalties.limit": 20}
    # One shape, so one program.
    return override(config, EVERYTHING | general | {"data.buckets": (16,)})


EVERYTHING = {
    "tuning.head_epochs": 1,
    "penalties.l2_sp": 0.1,
    "penalties.ewc": 0.1,
    "penalties.kl_to_base": 0.1,
    "penalties.r_drop": 0.1,
    "penalties.feature_distillation": 0.1,
    "penalties.replay": 0.1,
    "penalties.mixout": 0.1,
    "averaging.method": "ema",
    "averaging.decay": 0.9,
    "averaging.wise_ft_alphas": (0.0, 0.5, 1.0),
}


def test_everything_at_once(tmp_path, with_everything):
    config = override(with_everything, {"tuning.method": "lora"})
    console = quiet()
    result = run(config, tmp_path / "run", console)
    print_result(console, result, "folder")
    assert "between the pretrained network" in console.file.getvalue()
    assert all(np.isfinite(value) for value in result.metrics.values())
    start, _, end = (entry["metrics"] for entry in result.wise_ft)
    assert start["retention/change"] == 0
    for name, value in end.items():
        assert value == pytest.approx(result.metrics[name], abs=1e-5), name
    assert result.cost.flops_per_step > 0
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "train/loss" in line)
    for name in ("kl_to_base", "r_drop", "feature_distillation", "replay"):
        assert logged[f"train/{name}"] >= 0
    assert (tmp_path / "run" / "head" / "metrics.jsonl").exists()


def test_everything_at_once_by_pmap(tmp_path, with_everything):
    settings = {
        "training.parallel": "pmap",
        "training.epochs": 1,
        "retention.enabled": False,
        "averaging.wise_ft_alphas": (),
        "tuning.head_epochs": 0,
        **{f"penalties.{name}": 0.0 for name in ("kl_to_base", "r_drop", "feature_distillation")},
    }
    result = run(override(with_everything, settings), tmp_path / "run", quiet())
    assert np.isfinite(result.metrics["test/loss"])


def test_a_language_model_replays_and_stays_near(tmp_path, tiny_llama, tiny_texts):
    config = override(
        base_config(),
        {
            "name": "tiny",
            "objective.name": "causal_lm",
            "model.reference": str(tiny_llama),
            "data.source": str(tiny_texts),
            "data.max_length": 32,
            "data.batch_size": 4,
            "evaluation.batch_size": 4,
            "retention.enabled": False,
            "training.epochs": 1,
            "penalties.source": str(tiny_texts),
            "penalties.limit": 10,
            **{name: value for name, value in EVERYTHING.items() if "head_epochs" not in name},
            "tuning.method": "lora",
            "tuning.neftune_alpha": 5.0,
            "model.dropout": 0.1,
        },
    )
    result = run(config, tmp_path / "run", quiet())
    assert np.isfinite(result.metrics["test/perplexity"])
    assert load_finished_run(tmp_path / "run").network is not None


def test_a_tuned_run_is_given_back_merged_and_as_an_adapter(tmp_path, config, tiny_bert):
    config = override(config, {"tuning.method": "dora", "retention.enabled": False})
    run(config, tmp_path / "run", quiet())
    for arguments in (["--folder=merged"], ["--folder=adapter", "--adapter"]):
        script = Path(__file__).parents[2] / "scripts" / "export.py"
        command = [sys.executable, script, f"--run={tmp_path / 'run'}", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finished = load_finished_run(tmp_path / "run")
    ids = np.arange(4, 14)[None]
    expected = finished.network.backbone(ids).last_hidden_state
    merged = load_model(tmp_path / "merged")(ids).last_hidden_state
    np.testing.assert_allclose(merged, expected, atol=1e-5)
    again = build(override(config, {"tuning.method": "full"}))
    network = again.rebuild(again.trainable, again.frozen)
    load_adapter(network, tiny_bert, tmp_path / "adapter")
    np.testing.assert_allclose(network.backbone(ids).last_hidden_state, expected, atol=1e-5)
    for folder in ("merged", "adapter"):
        head = load_file(tmp_path / folder / "2_Dense" / "model.safetensors")
        kernel = finished.network.classifier.kernel[...]
        np.testing.assert_array_equal(head["linear.weight"].T, kernel)


def test_a_run_that_trains_few_rows_of_the_table_comes_back_whole(tmp_path, config, tiny_bert):
    few = {"data.train_limit": 3, "retention.enabled": False, "training.epochs": 1}
    config = override(config, few)
    result = run(config, tmp_path / "run", quiet())
    parts = build(config)
    rows = parts.trainable["backbone.embeddings.word_embeddings.seen_rows"]
    assert rows.shape == (len(np.unique(parts.objective.examples["train"].token_ids())), 16)
    whole = build(override(config, {"tuning.embedding_rows": "all"}))
    assert result.cost.parameters == sum(leaf.size for leaf in whole.trainable.values())
    finished = load_finished_run(tmp_path / "run")
    start = load_model(tiny_bert)
    ids = np.arange(4, 64)[None]
    tables = [n.embeddings.word_embeddings for n in (finished.network.backbone, start)]
    moved = np.abs(np.asarray(tables[0](ids) - tables[1](ids))).max(-1)[0] > 0
    seen = np.isin(ids[0], parts.objective.examples["train"].token_ids())
    np.testing.assert_array_equal(moved, seen)
    hidden = finished.network.backbone(ids[:, :20]).last_hidden_state
    merged, _ = merged_and_compared(finished.network, finished.base)
    assert isinstance(merged.embeddings.word_embeddings, nnx.Embed)
    np.testing.assert_allclose(merged(ids[:, :20]).last_hidden_state, hidden, atol=1e-6)


def last_state(folder, config):
    with Checkpoints(RunFolder(folder).checkpoints, keep_last=9) as checkpoints:
        return checkpoints.restore_best(
            build(config).trainable, RunFolder(folder).result().best_step
        )


def test_a_probe_on_cached_features_is_a_probe_through_the_network(tmp_path, config, monkeypatch):
    config = override(config, {"tuning.method": "linear_probe"})
    cached = run(config, tmp_path / "cached", quiet())
    assert (tmp_path / "cached" / "features.safetensors").exists()
    monkeypatch.setattr(Parts, "only_head_moves", False)
    through = run(config, tmp_path / "through", quiet())
    assert not (tmp_path / "through" / "features.safetensors").exists()
    for name, value in cached.metrics.items():
        assert through.metrics[name] == pytest.approx(value, abs=1e-5), name
    assert cached.cost.flops_per_step < 0.05 * through.cost.flops_per_step


def test_what_has_not_joined_yet_has_not_moved(tmp_path, config):
    config = override(config, {"tuning.unfreeze_epochs": 1})
    run(config, tmp_path / "run", quiet())
    start, end = build(config).trainable, last_state(tmp_path / "run", config)
    for path, value in start.items():
        moved = not np.array_equal(value, end[path])
        if path.startswith("classifier."):
            assert moved, path
        # In two epochs only the upper of two blocks has joined.
        elif ".layer.1." not in path:
            assert not moved, path


def test_new_blocks_at_the_top(config):
    fresh = build(override(config, {"tuning.reinit_top": 1})).trainable
    for path, value in build(config).trainable.items():
        same = np.array_equal(value, fresh[path])
        assert same == (".layer.1." not in path or not path.endswith(".kernel")), path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"penalties.ewc": 1.0}, "penalties.source must be set"),
        ({"penalties.source": "text.csv"}, "source is read only with penalties.ewc = other than"),
        ({"penalties.replay": 1.0}, "penalties.source must be set"),
        ({"penalties.kl_to_base": 1.0}, "set tuning.head_epochs"),
        ({"tuning.method": "full", "tuning.rank": 4}, "tuning.rank is read only"),
        ({"tuning.rank": 4}, "read only with tuning.method = 'lora'"),
        ({"averaging.decay": 0.5}, "read only with averaging.method = 'ema'"),
        ({"averaging.wise_ft_alphas": (0.5, 1.5)}, "wise_ft_alphas"),
        ({"tuning.method": "lore"}, "did you mean lora"),
        (
            {"tuning.method": "linear_probe", "penalties.l2_sp": 1.0},
            "is not read with",
        ),
        ({"tuning.method": "linear_probe", "tuning.unfreeze_epochs": 1}, "read only with"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(config, overrides, message):
    with pytest.raises(ValueError, match=message):
        validate(override(config, overrides))


def test_too_many_new_blocks_are_refused(config):
    with pytest.raises(ValueError, match=r"reinit_top = 3, but there are only .*layer: 2 blocks"):
        build(override(config, {"tuning.reinit_top": 3}))


def test_r_drop_without_dropout_is_refused(config):
    without = {"penalties.r_drop": 1.0, "model.dropout": 0.0, "model.head_dropout": 0.0}
    with pytest.raises(ValueError, match="no dropout rate of this network is above 0"):
        build(override(config, without))


def test_splits_with_the_same_records_are_refused(config, tmp_path, tiny_texts):
    for split in ("train", "validation", "test"):
        source = str(tiny_texts).replace("{split}", "test" if split == "test" else "train")
        (tmp_path / f"{split}.csv").write_bytes(Path(source).read_bytes())
    with pytest.raises(ValueError, match=r"train and validation of .* hold the same records"):
        build(override(config, {"data.source": str(tmp_path / "{split}.csv")}))
