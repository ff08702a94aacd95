import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ftjax.training.checkpoint import Checkpoints, DamagedCheckpointError


def state(value, count=3):
    random = np.random.default_rng(value)
    return {
        "trainable": {
            f"block.{n}.kernel": jnp.asarray(random.normal(size=(64, 48)), jnp.float32)
            for n in range(count)
        },
        "half": jnp.asarray(random.normal(size=5), jnp.bfloat16),
        "step": jnp.asarray(value, jnp.int32),
    }


def same(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def checkpoints(tmp_path, warnings):
    with Checkpoints(tmp_path / "c", keep_last=2, warn=warnings.append) as checkpoints:
        yield checkpoints


def reopened(tmp_path, warnings=None):
    warn = (lambda _: None) if warnings is None else warnings.append
    return Checkpoints(tmp_path / "c", keep_last=2, warn=warn)


def files_of(tmp_path, step):
    return sorted(p for p in (tmp_path / "c" / str(step)).rglob("*") if p.is_file())


def largest_of(tmp_path, step):
    return max(files_of(tmp_path, step), key=lambda path: path.stat().st_size)


def test_back_bit_for_bit_with_its_progress(checkpoints):
    checkpoints.save(7, state(7), {"epoch": 1, "clock": {"train": 0.1}})
    checkpoints.wait()
    step, restored, progress = checkpoints.restore(state(0))
    assert (step, progress) == (7, {"epoch": 1, "clock": {"train": 0.1}})
    assert same(restored, state(7))
    assert restored["half"].dtype == ml_dtypes.bfloat16


def test_none_when_there_is_none(checkpoints):
    assert checkpoints.restore(state(0)) is None
    with pytest.raises(DamagedCheckpointError, match=r"best/1 \(it is not there\)\. Restore"):
        checkpoints.restore_best(state(0), 1)
    assert checkpoints.latest_step() == -1


def test_the_latest_few_are_kept_and_the_best_besides(tmp_path, checkpoints):
    for step in range(1, 6):
        if step == 2:
            checkpoints.save_best(step, state(step)["trainable"])
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    kept = {path.name for path in (tmp_path / "c").iterdir()}
    assert kept == {"4", "5", "best"}
    best = checkpoints.restore_best(state(0)["trainable"], 2)
    assert same(best, state(2)["trainable"])


def test_a_new_best_takes_the_place_of_the_old(tmp_path, checkpoints):
    for step in (1, 3):
        checkpoints.save_best(step, state(step)["trainable"])
    checkpoints.wait()
    assert {path.name for path in (tmp_path / "c" / "best").iterdir()} == {"3"}
    # A session that went back writes an earlier best again.
    checkpoints.save_best(2, state(2)["trainable"])
    checkpoints.wait()
    best = checkpoints.restore_best(state(0)["trainable"], 2)
    assert same(best, state(2)["trainable"])


def test_saving_copies_before_it_returns(checkpoints):
    values = np.zeros((512, 512), np.float32)
    checkpoints.save(1, {"x": values}, {})
    values += 1
    checkpoints.wait()
    assert (checkpoints.restore({"x": values})[1]["x"] == 0).all()


def test_donated_memory_does_not_reach_the_checkpoint(checkpoints):
    increase = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((512, 512))
    checkpoints.save(1, {"x": x}, {})
    for _ in range(50):
        x = increase(x)
    checkpoints.wait()
    assert (checkpoints.restore({"x": x})[1]["x"] == 0).all()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, os.remove], ids=["cut", "bit flipped", "deleted"])
def test_a_damaged_latest_falls_back_and_says_so(tmp_path, checkpoints, damage, warnings):
    for step in (1, 2):
        checkpoints.save(step, state(step), {"at": step})
    checkpoints.wait()
    damage(largest_of(tmp_path, 2))
    with reopened(tmp_path, warnings) as again:
        step, restored, progress = again.restore(state(0))
        assert (step, progress) == (1, {"at": 1})
        assert same(restored, state(1))
        assert len(warnings) == 1
        assert "2" in warnings[0]
        assert "going back to step 1" in warnings[0]
        again.save(2, state(2), {"at": 2})
        again.wait()
        assert again.restore(state(0))[0] == 2


def test_lost_metadata_falls_back(tmp_path, checkpoints, warnings):
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    for path in files_of(tmp_path, 2):
        if path != largest_of(tmp_path, 2):
            path.unlink()
    with reopened(tmp_path, warnings) as again:
        assert again.restore(state(0))[0] == 1
    assert warnings


def test_what_orbax_notes_for_itself_is_no_news(tmp_path, checkpoints, warnings, capfd, caplog):
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    (tmp_path / "c" / "1" / "_CHECKPOINT_METADATA").write_text("{")
    with reopened(tmp_path, warnings) as again:
        assert same(again.restore(state(0))[1], state(1))
    assert not [r for r in caplog.records if r.levelname == "ERROR"]
    assert "json" not in capfd.readouterr().err
    assert not warnings


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path, checkpoints):
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    cut(largest_of(tmp_path, 1))
    with (
        reopened(tmp_path) as again,
        pytest.raises(DamagedCheckpointError, match="delete the run folder to start"),
    ):
        again.restore(state(0))


@pytest.mark.parametrize("count", [2, 4])
def test_another_structure_is_not_taken_for_this_one(tmp_path, checkpoints, count):
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    with pytest.raises(DamagedCheckpointError, match=r"structure|other arrays"):
        checkpoints.restore(state(1, count=count))


def test_another_shape_is_not_taken_for_this_one(checkpoints):
    checkpoints.save(1, {"x": np.zeros(3)}, {})
    checkpoints.wait()
    with pytest.raises(DamagedCheckpointError, match="expected"):
        checkpoints.restore({"x": np.zeros(4)})


def test_killed_while_saving_leaves_the_one_before(tmp_path):
    program = f"""
        import os, signal
        import numpy as np
        from ftjax.training.checkpoint import Checkpoints
        checkpoints = Checkpoints({str(tmp_path / "c")!r}, keep_last=2)
        checkpoints.save(1, {{"x": np.ones(1000)}}, {{}})
        checkpoints.wait()
        checkpoints.save(2, {{"x": np.random.normal(size=4_000_000)}}, {{}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert "2" not in names
    with reopened(tmp_path) as again:
        step, restored, _ = again.restore({"x": np.empty(1000)})
    assert step == 1
    assert (restored["x"] == 1).all()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "c", keep_last=1)


def test_a_full_disk_is_told_with_the_folder_and_what_is_safe(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path / "c", keep_last=2) as checkpoints:
        checkpoints.save(1, {"a": np.ones(3)}, {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._latest, "save", full)
        told = r"/c \(No space left on device; .* MiB are free there\).*takes 0.0 MiB.*are safe"
        with pytest.raises(OSError, match=told):
            checkpoints.save(2, {"a": np.ones(3)}, {})
        assert checkpoints.latest_step() == 1
