"""Checkpoints by Orbax: written in the background, committed whole, checked when read.

The latest few hold everything that training needs (`<folder>/<step>`); the best holds the trainable
parameters only (`<folder>/best/<step>`).
"""

import contextlib
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

BEST = "best"


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
        self._warn = warn

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._latest.close()
        self._best.close()

    def save(self, step: int, state: Any, progress: dict) -> None:
        """Starts saving a state; returns once it is copied, so its memory may be reused.

        Args:
            step: updates done.
            state: pytree of arrays.
            progress: JSON values that belong to it.
        """
        # A state must never know of a best that is not on disk: killed in between, the run would
        # end without it. The other way round it is found again.
        with _told(self.folder):
            self._best.wait_until_finished()
            _save(self._latest, step, state, progress)

    def save_best(self, step: int, trainable: Any) -> None:
        """Starts saving the parameters of the best validation so far, in place of the old ones."""
        for old in self._best.all_steps():
            # Left by a session that was killed; Orbax ignores a step that is not the latest.
            if old >= step:
                self._best.delete(old)
        with _told(self.folder):
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
        return self._first_readable(self._latest, like)

    def restore_best(self, like: Any) -> tuple[int, Any, dict] | None:
        """The best parameters; see `restore`."""
        return self._first_readable(self._best, like)

    def latest_step(self) -> int:
        """The step of the latest checkpoint that is committed, -1 for none."""
        step = self._latest.latest_step()
        return -1 if step is None else step

    def wait(self) -> None:
        """Returns when all is written."""
        with _told(self.folder):
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def _first_readable(self, manager: ocp.CheckpointManager, like: Any):
        damaged = []
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                state, progress = _restore(manager, step, like)
            except Exception as error:
                damaged.append(f"{manager.directory / str(step)} ({_first_line(error)})")
                continue
            for description in damaged:
                self._warn(f"Damaged checkpoint {description}; going back to step {step}.")
            self._forget_after(manager, step)
            return step, state, progress
        if damaged:
            raise DamagedCheckpointError(
                "No checkpoint can be read: " + "; ".join(damaged) + ". Restore the folder from a "
                "copy, or delete it to start from the pretrained weights again."
            )
        return None

    def _forget_after(self, manager: ocp.CheckpointManager, step: int) -> None:
        """Drops what is later: it is damaged, and will be written again."""
        for later in [other for other in manager.all_steps() if other > step]:
            shutil.rmtree(manager.directory / str(later))
        manager.reload()


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """A disk that is full or broken, as a sentence."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise OSError(
            f"A checkpoint could not be written to {folder} ({error.strerror or error}); "
            f"{free / 2**20:,.0f} MiB are free there. The checkpoints before it are safe: free "
            "space (a checkpoint takes as much as the largest folder in it), and the same command "
            "continues from the last one."
        ) from error


def host_copy(tree: Any) -> Any:
    """All arrays as numpy arrays of their own, wherever they lived."""

    def copy(leaf):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.array(leaf)

    return jax.tree.map(copy, tree)


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The checkpoint folder {folder} cannot be written ({error}).") from error
    return ocp.CheckpointManager(
        epath.Path(folder),
        item_names=("state", "progress"),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        ),
    )


def _save(manager: ocp.CheckpointManager, step: int, state: Any, progress: dict) -> None:
    leaves = _named(host_copy(state))
    # Orbax finds missing and cut files, but not flipped bits.
    checksums = {name: zlib.crc32(leaf) for name, leaf in leaves.items()}
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(leaves),
            progress=ocp.args.JsonSave({"progress": progress, "checksums": checksums}),
        ),
    )


def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict]:
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
    leaves, notes = restored["state"], restored["progress"]
    if leaves.keys() != named.keys():
        different = sorted(leaves.keys() ^ named.keys())
        raise ValueError(f"it holds other arrays: {', '.join(different[:5])}")
    for name, leaf in leaves.items():
        expected = named[name]
        if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
            raise ValueError(f"{name} is {leaf.dtype}{leaf.shape}, expected {expected}")
        if zlib.crc32(np.ascontiguousarray(leaf)) != notes["checksums"][name]:
            raise ValueError(f"the checksum of {name} is wrong")
    ordered = [leaves[name] for name in named]
    return jax.tree.unflatten(jax.tree.structure(like), ordered), notes["progress"]


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path: a dict of arrays outlives changes in Optax's and Flax's own classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
