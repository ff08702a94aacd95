"""What holds of every objective, whatever it learns: see `matrix.PROPERTIES`."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import (
    apart,
    on_the_left,
    only_segment,
    poisoned,
    real_tokens,
    sums_of,
    wider,
    with_other_neighbours,
)
from made import SIZES
from matrix import PROPERTIES, ROWS, cells, reason, reasons, sided_cells
from stopped import whole_and_continued

from ftjax.config import override
from ftjax.losses.forward import START, forward
from ftjax.objectives import OBJECTIVES
from ftjax.penalties.penalties import make_penalties
from ftjax.training.build import build
from ftjax.training.optimizer import make_optimizer, make_schedule
from ftjax.training.parallel import MeshParallel, PmapParallel
from ftjax.training.step import make_train_step, new_state

TOLERANCE, COUNT = 1e-6, len(SIZES)


def over(found):
    """A test for each cell, named by it."""
    names = "objective, family" if len(found[0]) == 2 else "objective, family, side, packing"
    return pytest.mark.parametrize(names, found, ids=["-".join(cell) for cell in found])


def laid_out(batch, side, packing):
    return on_the_left(batch) if side == "left" else batch


def batch_of(case, packing, examples=COUNT):
    return case.together() if packing == "packed" else case.batch(examples)


def assert_same_bits(found, expected):
    leaves = map(jax.tree_util.tree_leaves_with_path, (found, expected))
    for (path, a), (_, b) in zip(*leaves, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.isfinite(b).all(), path
        assert a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path)}: {np.abs(a - b).max()}"


def assert_close(found, expected):
    """Mean loss and gradient; differences relative to what is largest, if that is above 1."""

    def means(sums):
        gradient = jax.tree.map(lambda g: np.asarray(g / sums.weight), sums.gradient)
        return float(sums.loss / sums.weight), gradient

    (loss, gradient), (expected_loss, expected_gradient) = means(found), means(expected)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE, abs=TOLERANCE)
    largest = max(1.0, *(float(np.abs(g).max()) for g in expected_gradient.values()))
    for path, value in expected_gradient.items():
        difference = float(np.abs(gradient[path] - value).max())
        assert difference <= TOLERANCE * largest, f"{path}: {difference:.1e}"


def test_every_objective_has_a_row():
    missing = OBJECTIVES.keys() - ROWS.keys()
    assert not missing, (
        f"tests/properties/matrix.py has no row for {', '.join(sorted(missing))}. Add a Row to "
        "ROWS: a function that makes one example, the families it is tried on, its loss where a "
        "network says nothing, the test that stops and resumes it, and for each property that it "
        "cannot have the reason."
    )
    assert ROWS.keys() <= OBJECTIVES.keys()


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("objective", ROWS)
def test_what_is_left_out_has_a_reason(objective, name, record_property):
    row = ROWS[objective]
    assert row.families and row.other_families
    assert row.packs or reason(objective, "packed"), "say why texts do not share a row"
    for key, why in row.left_out.items():
        assert (key if isinstance(key, str) else key[0]) in PROPERTIES and len(why) > 20
    record_property("left_out", reasons(objective, name))


@over(sided_cells("garbage"))
def test_garbage(case_of, objective, family, side, packing):
    case = case_of(objective, family)
    batch = laid_out(batch_of(case, packing, COUNT - 2), side, packing)
    assert (batch["weights"] == 0).any()
    expected = case.sums(case.trainable, batch)
    for kind in ("other", "nothing", "huge"):
        assert_same_bits(case.sums(case.trainable, poisoned(batch, kind)), expected)


@over(sided_cells("wider"))
def test_wider(case_of, objective, family, side, packing):
    case = case_of(objective, family)
    batch = batch_of(case, packing)
    expected = case.sums(case.trainable, batch)
    padded = laid_out(wider(batch), side, packing)
    assert_close(case.sums(case.trainable, padded), expected)


@over(cells("packed"))
def test_packed(case_of, objective, family):
    case = case_of(objective, family)
    batch = case.together()
    assert batch["segment_ids"].max() > 1
    alone = apart(batch, COUNT)
    assert alone["weights"].sum() == batch["weights"].sum()
    assert_close(*(case.sums(case.trainable, b) for b in (batch, alone)))


@over(cells("neighbour"))
def test_neighbour(case_of, objective, family):
    """Both of the first and of the second text of each row."""
    case = case_of(objective, family)
    for segment in (1, 2):
        batch = only_segment(case.together(), segment)
        assert batch["weights"].any()
        changed = with_other_neighbours(batch, segment)
        assert (changed["input_ids"] != batch["input_ids"]).any()
        assert_same_bits(*(case.sums(case.trainable, b) for b in (changed, batch)))


@over(cells("permuted"))
def test_permuted(case_of, objective, family):
    case = case_of(objective, family)
    batch = case.batch(COUNT - 2)
    order = np.random.default_rng(0).permutation(COUNT)
    other = {name: array[order] for name, array in batch.items()}
    assert_close(*(case.sums(case.trainable, b) for b in (other, batch)))


@over(cells("step_0"))
def test_step_0(case_of, objective, family):
    """All parameters 0: every logit is, whatever the family."""
    case = case_of(objective, family)
    batch = case.batch()
    silent = case.silent(batch)
    chance = ROWS[objective].chance(case.parts.objective, batch)
    assert float(silent.loss / silent.weight) == pytest.approx(chance, rel=TOLERANCE)


def first_families(name):
    """One family of each objective, of one layer: what is asked is not a matter of the network."""
    return [cell for cell in cells(name) if cell[1] == ROWS[cell[0]].families[0]]


@over(first_families("step_0"))
def test_step_0_of_lora(case_of, config_for, objective, family):
    case = case_of(objective, family, layers=1)
    batch = case.batch()
    base = case.sums(case.parts.trainable, batch)
    parts = build(config_for(objective, family, layers=1, **{"tuning.method": "lora"}))
    loss = jax.jit(lambda trainable, batch: sums_of(parts, trainable, batch).loss)
    assert float(loss(parts.trainable, batch)) == pytest.approx(float(base.loss), rel=TOLERANCE)


@over(first_families("garbage"))
def test_penalties_on_outputs(case_of, objective, family):
    """None at the start, some away from it, sums over examples, and nothing where none is."""
    case = case_of(objective, family, layers=1)
    parts, names = case.parts, ("kl_to_base", "feature_distillation")
    penalties = make_penalties(
        dict.fromkeys(names, 1.0), parts.objective.loss, parts.objective.divergence
    )

    @jax.jit
    def found(trainable, batch):
        frozen = parts.frozen | {START + path: value for path, value in parts.trainable.items()}
        passed = forward(
            lambda p, _: parts.rebuild(p, parts.frozen), trainable, frozen, batch, None
        )
        return penalties.on_outputs(passed)

    def without(batch, rows):
        return batch | {"weights": np.where(of_rows(batch["weights"], rows), batch["weights"], 0)}

    def of_rows(array, rows):
        return np.isin(np.arange(len(array)), rows).reshape(-1, *[1] * (array.ndim - 1))

    batch = case.batch(COUNT - 2)
    whole = found(case.trainable, batch)
    assert_same_bits(found(case.trainable, poisoned(batch, "other")), whole)
    parts_of_it = [found(case.trainable, without(batch, rows)) for rows in ([0, 3], [1, 2, 4, 5])]
    for name in names:
        assert float(found(parts.trainable, batch)[name]) == pytest.approx(0, abs=1e-5)
        assert float(whole[name]) > 1e-3
        assert float(whole[name]) == pytest.approx(sum(float(p[name]) for p in parts_of_it), 1e-5)


PLAIN = {
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 1.0,
    "optimizer.warmup_fraction": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.max_gradient_norm": None,
}
# What maps the step, on four devices. In two micro-batches each, a mesh sees parts of 4 rows and a
# device under pmap parts of one; on one device `tests/training/test_step.py` divides batches.
DIVIDED = {"2 x 4 over a mesh": MeshParallel, "8 x 1 by pmap": PmapParallel}


@over(first_families("divided"))
@pytest.mark.parametrize("how", DIVIDED)
def test_divided(case_of, objective, family, how):
    """A step of plain descent at rate 1 goes by the gradient of all rows at once."""
    case, parallel = case_of(objective, family, layers=1), DIVIDED[how](jax.devices())
    batch, start = case.batch(), jax.device_get(case.trainable)
    if "input_ids" in batch:
        supervised = batch["weights"] if batch["weights"].ndim == 2 else real_tokens(batch)
        assert len(set((supervised > 0).sum(1))) > 3
    settings = override(case.config, PLAIN).optimizer
    schedule = make_schedule(settings, 1)
    optimizer = make_optimizer(settings, schedule, start)
    step = make_train_step(
        case.parts.rebuild,
        case.parts.objective.loss,
        optimizer,
        schedule,
        accumulation_steps=2,
        axis_name=parallel.axis_name,
    )
    state = parallel.place(new_state(0, start, optimizer))
    before = {START + path: value for path, value in case.parts.trainable.items()}
    frozen = parallel.place(jax.device_get(case.parts.frozen | before))
    state, metrics = parallel.map_train(step)(state, frozen, parallel.place_batch(batch))
    expected = case.sums(case.trainable, batch)
    metrics = parallel.fetch(metrics)
    assert metrics["loss"] == pytest.approx(float(expected.loss / expected.weight), rel=TOLERANCE)
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected.gradient.values()))
    assert metrics["gradient_norm"] == pytest.approx(norm / float(expected.weight), rel=1e-5)
    for path, value in jax.device_get(parallel.one_copy(state)).trainable.items():
        moved = start[path] - expected.gradient[path] / expected.weight
        np.testing.assert_allclose(value, moved, rtol=TOLERANCE, atol=TOLERANCE, err_msg=path)


@pytest.mark.parametrize("objective", ROWS)
def test_resumed(config_for, tmp_path, monkeypatch, objective):
    if place := ROWS[objective].resumed:
        file, _, test = place.partition("::")
        assert f"def {test}(" in (Path(__file__).parents[2] / file).read_text(), place
        return
    config = config_for(objective, ROWS[objective].families[0], layers=1, **{"training.epochs": 4})
    whole_and_continued(config, tmp_path, monkeypatch, batch=3, step=2)
