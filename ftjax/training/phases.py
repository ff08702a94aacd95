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
from flax import nnx
from rich.console import Console
from safetensors.numpy import load, save

from ftjax.config import Config, config_of, flatten
from ftjax.data.examples import Examples, FeatureExamples
from ftjax.evaluation.measurement import Measurement
from ftjax.files import writing
from ftjax.objectives import Objective
from ftjax.penalties.fisher import add_squared_gradients, normalised
from ftjax.penalties.penalties import FISHER, START, make_penalties
from ftjax.progress import track
from ftjax.randomness import run_key
from ftjax.runs.folder import RunFolder
from ftjax.runs.manifest import note_reference
from ftjax.training.build import Parts
from ftjax.training.fit import fit
from ftjax.training.measure import Measure
from ftjax.tuning.masks import is_new
from ftjax.tuning.partition import Parameters

FEATURES = "features.safetensors"
REFERENCE = "reference.safetensors"
TEACHER = "teacher.safetensors"
DIGEST_BYTES = 32
Features = dict[str, np.ndarray]


def measure_before(
    config: Config, folder: RunFolder, parts: Parts, measure: Measure, console: Console
) -> tuple[Features, dict[str, Any]]:
    """The pretrained network's features, and what training does not change, kept for a resume.

    Features are of all splits, or of none where nothing needs them. The rest are JSON values:
    `metrics` of the baselines, and `retention` before.
    """
    objective = parts.objective
    before: dict[str, Any] | None
    needs_features = parts.only_head_moves or config.tuning.get("head_epochs", 0) > 0
    features, before = _load_arrays(folder.path / FEATURES), _load_before(folder, console)
    if before is not None and (features or not needs_features):
        return features, before
    console.print("Scoring the pretrained network and the baselines ...")
    start = parts.parallel.place(parts.trainable)
    metrics: dict[str, float] = {}
    before = {"metrics": metrics}
    if not objective.has_new_head:
        # Without a new head, the published network is its own baseline.
        measurement = objective.measurement()
        kept = dataclasses.replace(measurement, score=lambda found: found)
        outputs = measure(kept, start, ["test"])
        found = measurement.score(outputs)
        metrics |= {name.replace("/", "/pretrained/", 1): value for name, value in found.items()}
        before["intervals"] = test_intervals(objective, outputs, "test/pretrained")
    if needs_features:
        measurement = Measurement(objective.examples, objective.features, lambda found: found)
        features = measure(measurement, start)
        _save_arrays(folder.path / FEATURES, features)
    if objective.has_baselines:
        before["baseline_examples"] = _score_baselines(objective, measure, start, features, metrics)
    if parts.retention is not None:
        before["retention"] = measure(parts.retention.measurement, start).tolist()
    if parts.answers is not None:
        before["answers"] = measure(parts.answers.measurement, start)
    folder.remember("before", before)
    return features, before


def _score_baselines(
    objective: Objective,
    measure: Measure,
    start: Parameters,
    features: Features,
    metrics: dict[str, float],
) -> dict[str, list[int]]:
    """Adds the baselines' metrics; of many examples they see some.

    Returns:
        Split -> how many were seen, and how many there are; where that differs.
    """
    rows = objective.baseline_rows()
    few = objective.with_rows(rows)
    if features:
        features = {name: features[name][rows[name]] for name in rows}
    elif objective.wants_features:
        features = measure(Measurement(few.examples, objective.features, lambda f: f), start)
    for name, scores in few.baselines(features).items():
        metrics |= {f"test/{name}/{key}": value for key, value in scores.items()}
    counts = {
        name: [len(rows[name]), len(all_.lengths)] for name, all_ in objective.examples.items()
    }
    return {name: [seen, count] for name, (seen, count) in counts.items() if seen < count}


def with_reference(folder: RunFolder, parts: Parts, measure: Measure, console: Console) -> Parts:
    """The same parts, with what the objective has to know of the network before tuning.

    It is kept for a resume. What network that was stands in the manifest.
    """
    measurement = parts.objective.reference()
    if measurement is None:
        return parts
    found = _load_arrays(folder.path / REFERENCE)
    if not found:
        console.print("Asking the network before tuning, which is what the loss compares with ...")
        found = measure(measurement, parts.parallel.place(parts.trainable))
        _save_arrays(folder.path / REFERENCE, found)
        note_reference(folder.path, "the network before tuning", _sha256(parts))
    return dataclasses.replace(parts, objective=parts.objective.with_reference(found))


def with_teacher(config: Config, folder: RunFolder, parts: Parts, console: Console) -> Parts:
    """The same parts, with what a teacher says of the training split; it is kept for a resume."""
    teacher = parts.objective.teacher()
    if teacher is None:
        return parts
    found = _load_arrays(folder.path / TEACHER)
    if not found:
        console.print("Asking the teacher ...")
        graphdef, state = nnx.split(teacher.load())
        size = config.evaluation.batch_size
        measure = Measure(parts.parallel, lambda s, _: nnx.merge(graphdef, s), {}, size)
        found = measure(teacher.measurement, parts.parallel.place(state))
        _save_arrays(folder.path / TEACHER, found)
    return dataclasses.replace(parts, objective=parts.objective.with_teacher(found["train"]))


def _sha256(parts: Parts) -> str:
    """Of all parameters by their paths."""
    digest = hashlib.sha256()
    arrays = parts.trainable | parts.parallel.one_copy(parts.frozen)
    for path in sorted(arrays):
        digest.update(f"{path}\0{arrays[path].dtype}{arrays[path].shape}\0".encode())
        digest.update(np.asarray(arrays[path]).tobytes())
    return digest.hexdigest()


def test_intervals(
    objective: Objective, outputs: dict[str, np.ndarray], of: str = "test"
) -> dict[str, tuple[float, float]]:
    """95 % intervals of scores by the names that `metrics` have.

    Args:
        objective: what is learned.
        outputs: of a network, at least for "test".
        of: what comes before the metric.
    """
    return {f"{of}/{name}": found for name, found in objective.intervals(outputs).items()}


def make_measure(config: Config, parts: Parts) -> Measure:
    """What measures the parts' network."""
    return Measure(parts.parallel, parts.rebuild, parts.frozen, config.evaluation.batch_size)


def over_features(parts: Parts, features: Features) -> Parts:
    """The same parts, with kept features in the place of texts."""
    examples: dict[str, Examples] = {
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
    with writing(head_folder.path, "The head's run", "Look at what lies there."):
        head_folder.path.mkdir(exist_ok=True)
    measure = make_measure(config, parts)
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
    penalties = make_penalties(config.penalties, parts.objective.general_loss)
    if penalties.needs_start or parts.objective.compares_live:
        anchors |= {START + path: value for path, value in parts.trainable.items()}
    if config.penalties.get("ewc", 0.0) > 0:
        console.print("Measuring the Fisher information on general text ...")
        fisher = _fisher_information(config, parts)
        anchors |= {FISHER + path: value for path, value in fisher.items()}
    return dataclasses.replace(parts, frozen=parts.frozen | parts.parallel.place(anchors))


def _fisher_information(config: Config, parts: Parts) -> Parameters:
    frozen = parts.parallel.one_copy(parts.frozen)
    key, size = run_key(config.seed, "fisher"), config.evaluation.batch_size
    general = parts.general
    assert general is not None
    length, count = general.buckets[-1], len(general.lengths)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(total, trainable, frozen, batch, key):
        return add_squared_gradients(
            total, lambda values: parts.rebuild(values, frozen), trainable, batch, key
        )

    total = {path: jnp.zeros(v.shape, jnp.float32) for path, v in parts.trainable.items()}
    for start in track(range(0, count, size), "measuring the Fisher information"):
        indices = np.arange(start, min(start + size, count))
        batch = general.batch(indices, rows=len(indices), length=length)
        batch.pop("example_ids")
        key, batch_key = jax.random.split(key)
        total = add(total, parts.trainable, frozen, batch, batch_key)
    return normalised(total)


def _load_before(folder: RunFolder, console: Console) -> dict[str, Any] | None:
    """What `measure_before` kept; None if there is nothing, or it is damaged: made again then."""
    try:
        return folder.recall("before")
    except (OSError, ValueError):
        console.print(f"before.json in {folder.path} is damaged; it is made again.")
        return None


def _save_arrays(file: Path, arrays: Features) -> None:
    """Atomically; a checksum stands behind the tensors."""
    # safetensors writes memory as it lies, whatever the order of its axes.
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    partial = file.with_name(f"{file.name}.partial")
    then = "Free space, and the same command continues."
    with writing(file, f"{len(content) / 2**20:,.1f} MiB of {file.stem}", then):
        try:
            partial.write_bytes(content + hashlib.sha256(content).digest())
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


def _load_arrays(file: Path) -> Features:
    """What `_save_arrays` wrote; empty if there is nothing, or it is damaged: made again then."""
    try:
        whole = file.read_bytes()
    except OSError:
        return {}
    content, digest = whole[:-DIGEST_BYTES], whole[-DIGEST_BYTES:]
    return load(content) if hashlib.sha256(content).digest() == digest else {}
