"""What comes before training: the pretrained network's scores, its head alone, its anchors."""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from safetensors.numpy import load, save

from ftjax.config import Config, config_of, flatten
from ftjax.data.examples import FeatureExamples
from ftjax.evaluation.measurement import Measurement
from ftjax.penalties.fisher import add_squared_gradients, normalised
from ftjax.penalties.penalties import FISHER, START, make_penalties
from ftjax.randomness import run_key
from ftjax.runs.folder import RunFolder
from ftjax.training.build import Parts
from ftjax.training.fit import fit
from ftjax.training.measure import Measure
from ftjax.training.report import tracker
from ftjax.tuning.masks import is_new
from ftjax.tuning.partition import Parameters

FEATURES = "features.safetensors"
DIGEST_BYTES = 32
Features = dict[str, np.ndarray]


def measure_before(
    config: Config, folder: RunFolder, parts: Parts, measure: Measure, console: Console
) -> tuple[Features | None, dict[str, Any]]:
    """The pretrained network's features, and what training does not change, kept for a resume.

    The latter are JSON values: `metrics` of the baselines, and `retention` before.
    """
    objective = parts.objective
    needs_features = parts.only_head_moves or config.tuning.get("head_epochs", 0) > 0
    features, before = _load_features(folder.path), folder.recall("before")
    if before is not None and (features is not None or not needs_features):
        return features, before
    console.print("Scoring the pretrained network and the baselines ...")
    start = parts.parallel.place(parts.trainable)
    metrics: dict[str, float] = {}
    if not objective.has_new_head:
        # Without a new head, the published network is its own baseline.
        scores = measure(objective.measurement(), start, ["test"])
        metrics |= {name.replace("/", "/pretrained/"): v for name, v in scores.items()}
    if objective.wants_features or needs_features:
        measurement = Measurement(objective.examples, objective.features, lambda found: found)
        features = measure(measurement, start)
        if needs_features:
            _save_features(folder.path, features)
        for name, scores in objective.baselines(features).items():
            metrics |= {f"test/{name}/{key}": value for key, value in scores.items()}
    before = {"metrics": metrics}
    if parts.retention is not None:
        before["retention"] = measure(parts.retention.measurement, start).tolist()
    folder.remember("before", before)
    return features, before


def make_measure(config: Config, parts: Parts, console: Console) -> Measure:
    """What measures the parts' network, with progress for a person."""
    size, track = config.evaluation.batch_size, tracker(console)
    return Measure(parts.parallel, parts.rebuild, parts.frozen, size, track)


def over_features(parts: Parts, features: Features) -> Parts:
    """The same parts, with kept features in the place of texts."""
    examples = {
        name: FeatureExamples(examples, features[name])
        for name, examples in parts.objective.examples.items()
    }
    objective = parts.objective.with_examples(examples)
    return dataclasses.replace(parts, objective=objective)


def train_head(
    config: Config, folder: RunFolder, parts: Parts, features: Features, console: Console
) -> Parameters:
    """The new head, trained alone on kept features in `head/`.

    Raises:
        Stopped: it was told to stop, and saved.
    """
    console.print(f"Training the head alone for {config.tuning.head_epochs} epochs ...")
    head = {path: value for path, value in parts.trainable.items() if is_new(path)}
    rest = {path: value for path, value in parts.trainable.items() if not is_new(path)}
    parts = over_features(parts, features)
    parts = dataclasses.replace(
        parts, trainable=head, frozen=parts.frozen | parts.parallel.place(rest)
    )
    head_folder = RunFolder(folder.path / "head")
    head_folder.path.mkdir(exist_ok=True)
    measure = make_measure(config, parts, console)
    return fit(_head_config(config), head_folder, parts, measure, console).best


def _head_config(config: Config) -> Config:
    """The config, but for what does not concern a head alone."""
    kept = {
        name: value
        for name, value in flatten(config).items()
        if not name.startswith(("penalties.", "averaging."))
    }
    kept |= {"training.epochs": config.tuning.head_epochs, "training.max_steps": None}
    return config_of(kept | {"tuning.unfreeze_epochs": None})


def with_anchors(config: Config, parts: Parts, console: Console) -> Parts:
    """What penalties compare with, beside the frozen parameters."""
    anchors = {}
    if make_penalties(config.penalties, parts.objective.loss).needs_start:
        anchors |= {START + path: value for path, value in parts.trainable.items()}
    if config.penalties.get("ewc", 0.0) > 0:
        console.print("Measuring the Fisher information on general text ...")
        fisher = _fisher_information(config, parts)
        anchors |= {FISHER + path: value for path, value in fisher.items()}
    return dataclasses.replace(parts, frozen=parts.frozen | parts.parallel.place(anchors))


def _fisher_information(config: Config, parts: Parts) -> Parameters:
    frozen = parts.parallel.one_copy(parts.frozen)
    key, size = run_key(config.seed, "fisher"), config.evaluation.batch_size
    length, count = parts.general.buckets[-1], len(parts.general.lengths)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(total, trainable, frozen, batch, key):
        return add_squared_gradients(
            total, lambda values: parts.rebuild(values, frozen), trainable, batch, key
        )

    total = {path: jnp.zeros(v.shape, jnp.float32) for path, v in parts.trainable.items()}
    for start in range(0, count, size):
        indices = np.arange(start, min(start + size, count))
        batch = parts.general.batch(indices, rows=len(indices), length=length)
        batch.pop("example_ids")
        key, batch_key = jax.random.split(key)
        total = add(total, parts.trainable, frozen, batch, batch_key)
    return normalised(total)


def _save_features(folder: Path, features: Features) -> None:
    """Atomically; a checksum stands behind the tensors."""
    content = save(features)
    partial = folder / f"{FEATURES}.partial"
    partial.write_bytes(content + hashlib.sha256(content).digest())
    os.replace(partial, folder / FEATURES)


def _load_features(folder: Path) -> Features | None:
    """What `_save_features` wrote; None if there is nothing, or it is damaged: made again then."""
    file = folder / FEATURES
    if not file.exists():
        return None
    whole = file.read_bytes()
    content, digest = whole[:-DIGEST_BYTES], whole[-DIGEST_BYTES:]
    return load(content) if hashlib.sha256(content).digest() == digest else None
