"""What disks, pipes and terminals do to the programs: a sentence, or silence, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver import NEVER, TRAIN, trial

from ftjax.command_line import errors_as_sentences, use_compilation_cache
from ftjax.config import base_config, override
from ftjax.training.run import run
from ftjax.use.predict import Predictor

TABLES = TRAIN.with_name("tables.py")
BENCHMARK = TRAIN.parents[1] / "results" / "benchmark-cpu-amd-epyc.json"


def tables(output) -> subprocess.CompletedProcess:
    command = [sys.executable, TABLES, f"--benchmark={BENCHMARK}"]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)


def test_output_that_nobody_reads_any_more():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        done = tables(output)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk():
    with open("/dev/full", "w") as output:
        done = tables(output)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The output cannot be written or read (No space left")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("library", [jnp, np], ids=["jax", "numpy"])
def test_more_than_the_memory_holds(library):
    def product():
        return float(library.ones((2**22, 2**22))[0, 0])

    told = r"^error: There is not enough memory \(.*accumulation"
    with pytest.raises(SystemExit, match=told), errors_as_sentences():
        product()


@pytest.fixture(scope="module")
def config(tiny_bert, tiny_texts):
    return override(
        base_config(),
        {
            "name": "tiny",
            "model.reference": str(tiny_bert),
            "data.source": str(tiny_texts),
            "data.buckets": (16,),
            "data.batch_size": 8,
            "evaluation.batch_size": 8,
            "evaluation.baselines": False,
            "retention.enabled": False,
            "training.epochs": 1,
            "training.log_every": 1,
        },
    )


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("moment", "count", "what"),
    [
        ("before", 1, "before.json (No space left on device; 0.0 MiB are free there)"),
        ("batch", 3, "A line could not be written to"),
        ("saving", 1, "A checkpoint could not be written to"),
        ("end", 1, "manifest.json (No space left on device; 0.0 MiB are free there)"),
    ],
)
def test_a_disk_that_fills_up(small_disk, config, programs, moment, count, what):
    folder = small_disk / "runs" / "run"
    done = trial(folder, config, ("FULL", moment, count), programs=programs)
    assert done.code == 1, done.output
    assert "Traceback" not in done.output
    told = done.output.splitlines()[-1]
    assert told.startswith("error: ") and str(folder) in told and what in told
    assert "free space" in told.lower() and "safe" in told
    (folder.parent / "filling").unlink()
    done = trial(folder, config, NEVER, programs=programs)
    assert done.code == 0, done.output


def test_a_moved_run_is_continued_and_used(tmp_path, config, programs):
    folder = tmp_path / "here" / "run"
    done = trial(folder, config, ("SIGTERM", "batch", 4), programs=programs)
    assert done.code == 143, done.output
    there = tmp_path / "there" / "another name"
    there.parent.mkdir()
    folder.rename(there)
    done = trial(there, config, NEVER, programs=programs)
    assert "Continuing from step 4" in done.output
    assert done.code == 0, done.output
    elsewhere = there.rename(tmp_path / "elsewhere")
    (prediction,) = Predictor(elsewhere)([{"text": "word1 word2"}])
    assert prediction["label"] in "abc"


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE", None])
def test_several_processes_are_refused_before_anything_is_written(
    tmp_path, config, name, monkeypatch
):
    if name is None:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
    else:
        monkeypatch.setenv(name, "2")
    told = rf"several processes \({f'{name}=2' if name else 'JAX'}\); ftjax runs in one"
    with pytest.raises(RuntimeError, match=told):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_step_of_a_larger_job_is_one_process(monkeypatch, tmp_path, config):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        run(config, tmp_path / "file" / "run")


def test_a_cache_that_cannot_be_written_is_told_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    use_compilation_cache()
    assert not capsys.readouterr().err, "JAX_COMPILATION_CACHE_DIR says another"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert f"{tmp_path / 'file' / 'xla'} cannot be written (Not a directory)" in told
    assert "Set FTJAX_CACHE to another" in told
