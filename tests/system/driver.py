"""Runs of scripts/train.py in processes of their own, killed or told to stop where a test wants it.

They are forked from a process that has imported ftjax, so that a trial costs what it computes.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TRAIN = Path(__file__).parents[2] / "scripts" / "train.py"
EXPERIMENT = """
import json
from ftjax.config import config_of

def get_config():
    return config_of(json.loads({values!r}))
"""
NEVER = ("", "never", 0)

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["ftjax.training.run", "ftjax.command_line", "ftjax.experiment"])


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        code: its exit code, or minus the signal that killed it.
        output: what it printed, errors included.
        seconds: how long it took.
    """

    code: int
    output: str
    seconds: float


def trial(folder: Path, config, where=NEVER, *, devices: int = 1, programs: Path) -> Outcome:
    """Starts or continues a run.

    Args:
        folder: the run's.
        config: the run's.
        where: (what, moment, count): the signal that it sends itself, or "FULL" for a disk that
            something else fills, the count-th time that it comes to a moment of `_moments`, or
            after so many milliseconds.
        devices: how many it sees.
        programs: a cache of compiled ones.
    """
    from ftjax.config import flatten

    folder.parent.mkdir(exist_ok=True)
    experiment = folder.with_suffix(".py")
    experiment.write_text(EXPERIMENT.format(values=json.dumps(flatten(config))))
    arguments = [str(TRAIN), f"--config={experiment}", f"--workdir={folder}"]
    output = folder.with_suffix(".txt")
    process = _forked.Process(target=_run, args=(arguments, where, devices, str(programs), output))
    start = time.monotonic()
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None, "it hangs"
    return Outcome(process.exitcode, output.read_text(), time.monotonic() - start)


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of all that must be the same bits: parameters, optimizer, metrics, result."""
    result = json.loads((folder / "result.json").read_text())
    told = {name: result[name] for name in ("metrics", "steps", "best_step", "details")}
    found = {"result": json.dumps(told, sort_keys=True).encode()}
    for path in folder.rglob("metrics.jsonl"):
        found[str(path.relative_to(folder))] = path.read_bytes()
    last = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    for path in (folder / "checkpoints" / str(last), *(folder / "checkpoints" / "best").iterdir()):
        for name, array in sorted(_arrays(path).items()):
            found[f"{path.relative_to(folder)} {name}"] = np.asarray(array).tobytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def _arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
        names = checkpointer.metadata(checkpoint / "state").item_metadata.tree
        arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        return checkpointer.restore(
            checkpoint / "state", args=ocp.args.PyTreeRestore(restore_args=arguments)
        )


def _run(arguments: list[str], where, devices: int, programs: str, output: Path) -> None:
    """In the child: the script, with what kills it in place."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        " --xla_llvm_disable_expensive_passes=true"
    )
    import jax

    from ftjax import command_line

    def use_cache():
        jax.config.update("jax_compilation_cache_dir", programs)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    command_line.use_compilation_cache = use_cache
    name, moment, count = where
    if name:
        act = functools.partial(_fill, output.parent)
        if name != "FULL":
            act = functools.partial(os.kill, os.getpid(), signal.Signals[name])
        if moment == "time":
            timer = threading.Timer(count / 1000, act)
            timer.daemon = True
            timer.start()
        else:
            _at(moment, count, act)
    sys.argv = arguments
    sys.path.insert(0, str(TRAIN.parent))
    runpy.run_path(str(TRAIN), run_name="__main__")


def _fill(folder: Path) -> None:
    """Leaves no room on the disk of a folder."""
    with contextlib.suppress(OSError), open(folder / "filling", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def _at(moment: str, count: int, act: Callable[[], None]) -> None:
    """Acts the count-th time that one of the moment's functions is called."""
    reached = 0

    def hooked(original: Callable, concerns: Callable[..., bool]) -> Callable:
        def call(*args, **kwargs):
            nonlocal reached
            result = original(*args, **kwargs) if moment == "saving" else None
            if concerns(*args):
                reached += 1
                if reached == count:
                    act()
            return result if moment == "saving" else original(*args, **kwargs)

        return call

    for owner, name, concerns in _moments()[moment]:
        setattr(owner, name, hooked(getattr(owner, name), concerns))


def _moments() -> dict[str, list[tuple[Any, str, Callable[..., bool]]]]:
    """Moment -> what is called then: (where it lies, its name, whether these arguments count)."""
    import jax

    from ftjax.data.examples import PackedExamples, TextExamples
    from ftjax.objectives import OBJECTIVES
    from ftjax.runs.folder import RunFolder
    from ftjax.training import checkpoint, fit, run
    from ftjax.training.measure import Measure

    def always(*_):
        return True

    def in_training(*_):
        return sys._getframe(2).f_code.co_filename.endswith("fit.py")

    return {
        "preparing data": [(OBJECTIVES["classification"], "read", always)],
        "scoring": [(Measure, "__call__", always)],
        "compiling": [(jax.stages.Lowered, "compile", always)],
        "batch": [(kind, "batch", in_training) for kind in (PackedExamples, TextExamples)],
        "validating": [(fit, "_validate", always)],
        # After it: the checkpoint is being written in the background.
        "saving": [(checkpoint, "_save", always)],
        "before": [(RunFolder, "remember", lambda _, name, value: name == "before")],
        "end": [(run, "finish_manifest", always)],
    }
