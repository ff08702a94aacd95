"""A run is a folder: config.json, manifest.json, metrics.jsonl, result.json, checkpoints/."""

import contextlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ftjax.files import read_checked_json, write_checked_json, writing
from ftjax.runs.result import Result

SMALLEST_FREE_BYTES = 2**20
# What only a run that began leaves; a start that failed has written its config alone.
OF_A_RUN = ("manifest.json", "task.json", "before.json", "metrics.jsonl", "result.json")
CONTINUES = (
    "The checkpoints are safe: free space, and the same command continues from the last one."
)


class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
        checkpoints: the folder for checkpoints in it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._lines = self.path / "metrics.jsonl"

    @contextlib.contextmanager
    def claimed(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Makes the folder this config's, or finds that it already is, and holds it meanwhile.

        A folder whose run never began, because its start failed, is taken over.

        Args:
            config: flat.

        Raises:
            OSError: it cannot be written, the disk is full, or a file of its run is missing.
            ValueError: it holds a run with another config (lists the fields that differ), another
                process is at work in it, or a file of its run is damaged.
        """
        with self._locked():
            flat = json.loads(json.dumps(config))
            file = self.path / "config.json"
            if self.checkpoints.exists() or any((self.path / f).exists() for f in OF_A_RUN):
                read_checked_json(self.path / "manifest.json")
                _refuse_another_config(self.path, read_checked_json(file), flat)
            else:
                write_checked_json(file, flat)
            if shutil.disk_usage(self.path).free < SMALLEST_FREE_BYTES:
                raise OSError(
                    f"The disk of the run folder {self.path} is full. Free space or choose another "
                    "one with --workdir."
                )
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the folder by a lock that the system drops when this process ends."""
        lock = FileLock(self.path / "lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"Another process is at work in {self.path}. Wait until it ends, or choose another "
                "folder with --workdir."
            ) from error
        except OSError as error:
            raise OSError(
                f"The run folder {self.path} cannot be written ({error.strerror or error}). Free "
                "space or choose another one with --workdir."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def config(self) -> dict[str, Any]:
        """The run's config, flat.

        Raises:
            FileNotFoundError: the folder holds no run.
            OSError, ValueError: the file cannot be read, or is damaged.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"{self.path} holds no run: there is no config.json in it.")
        return read_checked_json(file)

    def result(self) -> Result | None:
        """What the run found; None if it is not finished."""
        values = self.recall("result")
        return None if values is None else Result.from_json(values)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl. The same run writes the same lines, bit for bit.

        Raises:
            OSError: it cannot be written.
        """
        line = json.dumps({"step": step, **metrics}, allow_nan=False) + "\n"
        with writing(self._lines, "A line", CONTINUES), open(self._lines, "ab") as file:
            file.write(line.encode())

    def logged(self) -> int:
        """CRC-32 of metrics.jsonl as it stands."""
        return zlib.crc32(self._lines.read_bytes()) if self._lines.exists() else 0

    def forget_after(self, step: int, logged: int) -> bool:
        """Drops metrics of later steps, which a resumed run will write again.

        Args:
            step: the last to keep.
            logged: what `logged` was then.

        Returns:
            False if the lines until then are not those that were written: then they are moved to
            metrics.damaged.jsonl.

        Raises:
            OSError: the file cannot be read or written.
        """
        with writing(self._lines, "The lines so far", CONTINUES):
            lines = self._lines.read_bytes() if self._lines.exists() else b""
            kept = [line for line in lines.splitlines(keepends=True) if _step_of(line) <= step]
            whole = zlib.crc32(b"".join(kept)) == logged
            partial = self._lines.with_suffix(".partial")
            partial.write_bytes(b"".join(kept) if whole else b"")
            if not whole and lines:
                os.replace(self._lines, self.path / "metrics.damaged.jsonl")
            os.replace(partial, self._lines)
        return whole

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Keeps what is costly to compute (`<name>.json`) for a resumed run."""
        write_checked_json(self.path / f"{name}.json", value)

    def recall(self, name: str) -> dict[str, Any] | None:
        """What `remember` kept, or None.

        Raises:
            OSError, ValueError: the file cannot be read, or is damaged.
        """
        file = self.path / f"{name}.json"
        return read_checked_json(file) if file.exists() else None


def _step_of(line: bytes) -> float:
    """The step of a line of metrics.jsonl; that of no run if it is not whole."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        # The process may have been killed in the middle of one.
        return math.inf


def _refuse_another_config(path: Path, old: dict, new: dict) -> None:
    missing = "(not set)"
    different = [
        f"  config.{name}: {old.get(name, missing)!r} there, {new.get(name, missing)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]
    if different:
        raise ValueError(
            f"{path} holds a run with another config:\n" + "\n".join(different) + "\n"
            "Choose another folder with --workdir, or give the config the same values to continue "
            "that run."
        )
