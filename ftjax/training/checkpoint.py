"""Checkpoints by Orbax: written in the background, committed whole, checked before they are read.

The latest few hold everything that training needs (`<folder>/<step>`); the best holds the trainable
parameters only (`<folder>/best/<step>`). Each holds a list of its files with their SHA-256, written
before it is committed.
"""

import contextlib
import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ftjax.files import bytes_below, read_checked_json, write_checked_json, writing
from ftjax.locate import sha256_of_file

BEST = "best"
LIST = "files.json"
ITEMS = ("state", "progress")


# Orbax logs an error where its notes on a checkpoint are damaged, which nothing is read from: what
# is read stands in our list of files.
logging.getLogger("absl").addFilter(
    lambda record: "orbax/checkpoint/_src/metadata" not in Path(record.pathname).as_posix()
)


class DamagedCheckpointError(ValueError):
    """No checkpoint can be read."""


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for pending writes."""

    def __init__(
        self, folder: str | Path, *, keep_last: int, warn: Callable[[str], None] = lambda _: None
    ):
        """Opens a folder, which is made if need be; half-written checkpoints in it are dropped.

        Args:
            folder: where they go.
            keep_last: how many of the latest to keep.
            warn: told when a damaged checkpoint is passed over.
        """
        self.folder = Path(folder).resolve()
        self._latest = _manager(self.folder, keep_last)
        self._best = _manager(self.folder / BEST, 1)
        self._keep_last = keep_last
        self._warn = warn

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        with self._writing():
            self._latest.close()
            self._best.close()

    def require_room(self, state: Any, best: Any) -> None:
        """Refuses to begin where the checkpoints will not fit.

        Args:
            state: pytree of arrays, as it will be saved.
            best: pytree of arrays, as the best will be saved.

        Raises:
            OSError: the disk has too little space left.
        """
        # A new one is whole before an old one goes.
        needed = (self._keep_last + 1) * _bytes(state) + 2 * _bytes(best)
        # Orbax deletes what is half-written in the background, meanwhile.
        there = bytes_below(self.folder)
        free = shutil.disk_usage(self.folder).free
        if there + free < needed:
            raise OSError(
                f"The checkpoints of this run take up to {needed / 2**20:,.0f} MiB in "
                f"{self.folder}, and {(there + free) / 2**20:,.0f} MiB are left for them. Free "
                "space, lower config.training.keep_checkpoints, or choose another disk with "
                "--workdir."
            )

    def save(self, step: int, state: Any, progress: dict) -> None:
        """Starts saving a state; returns once it is copied, so its memory may be reused.

        Args:
            step: updates done.
            state: pytree of arrays.
            progress: JSON values that belong to it.

        Raises:
            OSError: this or the checkpoint before it could not be written.
        """
        # A state must never know of a best that is not on disk: killed in between, the run would
        # end without it. The other way round it is found again.
        with self._writing(_bytes(state)):
            self._best.wait_until_finished()
            _save(self._latest, step, state, progress)

    def save_best(self, step: int, trainable: Any) -> None:
        """Starts saving the parameters of the best validation so far, in place of the old ones.

        Raises:
            OSError: as `save`.
        """
        for old in self._best.all_steps():
            # Left by a session that was killed; Orbax ignores a step that is not the latest.
            if old >= step:
                self._best.delete(old)
        with self._writing(_bytes(trainable)):
            _save(self._best, step, trainable, {})

    def restore(self, like: Any) -> tuple[int, Any, dict] | None:
        """The latest state that can be read, bit for bit.

        Args:
            like: pytree of the same structure with shapes and dtypes.

        Returns:
            (step, state as numpy arrays, progress), or None if there is no checkpoint.

        Raises:
            DamagedCheckpointError: there are checkpoints, and none can be read.
        """
        damaged = []
        for step in sorted(self._latest.all_steps(), reverse=True):
            try:
                state, progress = _restore(self._latest, step, like)
            except Exception as error:
                damaged.append(_described(self._latest, step, error))
                continue
            for description in damaged:
                self._warn(f"Damaged checkpoint {description}; going back to step {step}.")
            self._forget_after(step)
            return step, state, progress
        if damaged:
            raise DamagedCheckpointError(
                f"No checkpoint can be read: {'; '.join(damaged)}. {self._what_to_do()}"
            )
        return None

    def restore_best(self, like: Any, step: int) -> Any:
        """The best parameters, bit for bit, as numpy arrays.

        Args:
            like: pytree of the same structure with shapes and dtypes.
            step: the one that they were found at.

        Raises:
            DamagedCheckpointError: they are not there, or cannot be read.
        """
        try:
            return _restore(self._best, step, like)[0]
        except Exception as error:
            raise DamagedCheckpointError(
                "The best parameters cannot be read: "
                f"{_described(self._best, step, error)}. {self._what_to_do()}"
            ) from error

    def require_best(self, step: int, now: int) -> None:
        """Refuses to go on to a best that is lost, before the time for it is spent.

        Args:
            step: of the best so far.
            now: the step that training goes on from; a best after it will be found again.

        Raises:
            DamagedCheckpointError: the best is not there, or damaged.
        """
        if any(other > now for other in self._best.all_steps()):
            return
        try:
            _check(self._best, step)
        except Exception as error:
            raise DamagedCheckpointError(
                f"The best parameters so far are lost: {_described(self._best, step, error)}. "
                f"{self._what_to_do()}"
            ) from error

    def latest_step(self) -> int:
        """The step of the latest checkpoint that is committed, -1 for none."""
        step = self._latest.latest_step()
        return -1 if step is None else step

    def wait(self) -> None:
        """Returns when all is written.

        Raises:
            OSError: it could not be.
        """
        with self._writing():
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def _forget_after(self, step: int) -> None:
        """Drops what is later: it is damaged, and will be written again."""
        for later in [other for other in self._latest.all_steps() if other > step]:
            shutil.rmtree(self._latest.directory / str(later))
        self._latest.reload()

    def _writing(self, size: int = 0) -> contextlib.AbstractContextManager:
        needed = f"It takes {size / 2**20:,.1f} MiB. " if size else ""
        return writing(
            self.folder,
            "A checkpoint",
            f"{needed}The checkpoints before it are safe: free space, and the same command "
            "continues from the last one.",
        )

    def _what_to_do(self) -> str:
        return (
            f"Restore {self.folder} from a copy, or delete the run folder to start from the "
            "pretrained weights again."
        )


def host_copy(tree: Any) -> Any:
    """All arrays as numpy arrays of their own, wherever they lived."""
    return jax.tree.map(np.array, tree)


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"The checkpoint folder {folder} cannot be written ({reason}).") from error
    return ocp.CheckpointManager(
        epath.Path(folder),
        item_names=ITEMS,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            # Called when all is written, and before it is committed.
            async_options=ocp.AsyncOptions(
                post_finalization_callback=functools.partial(_list_files, folder)
            ),
        ),
    )


def _list_files(folder: Path) -> None:
    """Lists the files of the checkpoint that is about to be committed."""
    steps = {int(p.name.partition(".")[0]): p for p in folder.iterdir() if "-tmp" in p.name}
    # One after the other, so it is the first.
    step, unfinished = min(steps.items())
    files = [file for item in ITEMS for file in (unfinished / item).rglob("*") if file.is_file()]
    names = {file.relative_to(unfinished).as_posix(): sha256_of_file(file) for file in files}
    write_checked_json(unfinished / LIST, {"step": step, "files": names})


def _check(manager: ocp.CheckpointManager, step: int) -> None:
    """Compares the files of a checkpoint with the list of them.

    Raises:
        ValueError, FileNotFoundError, OSError: names the file that differs.
    """
    folder = Path(manager.directory) / str(step)
    if not folder.is_dir():
        raise FileNotFoundError("it is not there")
    try:
        listed = read_checked_json(folder / LIST)
    except (OSError, ValueError) as error:
        raise ValueError(f"{LIST}, the list of its files, is missing or damaged") from error
    if listed["step"] != step:
        raise ValueError(f"it is the one of step {listed['step']}")
    for name, expected in listed["files"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is missing")
        if sha256_of_file(folder / name) != expected:
            raise ValueError(f"{name} is damaged")


def _save(manager: ocp.CheckpointManager, step: int, state: Any, progress: dict) -> None:
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(_named(host_copy(state))),
            progress=ocp.args.JsonSave(progress),
        ),
    )


def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict]:
    _check(manager, step)
    named = _named(like)
    arguments = {
        name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        for name, leaf in named.items()
    }
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(restore_args=arguments),
            progress=ocp.args.JsonRestore(),
        ),
    )
    leaves = restored["state"]
    if leaves.keys() != named.keys():
        different = sorted(leaves.keys() ^ named.keys())
        raise ValueError(f"it holds other arrays: {', '.join(different[:5])}")
    for name, leaf in leaves.items():
        expected = named[name]
        if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
            raise ValueError(f"{name} is {leaf.dtype}{leaf.shape}, expected {expected}")
    ordered = [leaves[name] for name in named]
    return jax.tree.unflatten(jax.tree.structure(like), ordered), restored["progress"]


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path: a dict of arrays outlives changes in Optax's and Flax's own classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _described(manager: ocp.CheckpointManager, step: int, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"{manager.directory / str(step)} ({reason})"
