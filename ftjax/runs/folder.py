"""A run is a folder: config.json, manifest.json, metrics.jsonl, result.json, checkpoints/."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ftjax.files import read_checked_json, write_checked_json
from ftjax.runs.result import Result

SMALLEST_FREE_BYTES = 2**20


class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
        checkpoints: the folder for checkpoints in it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    @contextlib.contextmanager
    def claimed(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Makes the folder this config's, or finds that it already is, and holds it meanwhile.

        A folder whose run never began, because its start failed, is taken over.

        Args:
            config: flat.

        Raises:
            OSError: it cannot be written, or the disk is full.
            ValueError: it holds a run with another config (lists the fields that differ), or
                another process is at work in it.
        """
        with self._locked():
            flat = json.loads(json.dumps(config))
            file = self.path / "config.json"
            if file.exists() and (self.path / "manifest.json").exists():
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
                f"The run folder {self.path} cannot be written ({error}). Free space or choose "
                "another one with --workdir."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def config(self) -> dict[str, Any]:
        """The run's config, flat.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: the file is damaged.
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
        """Appends a line to metrics.jsonl. The same run writes the same lines, bit for bit."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, as far as they are whole."""
        file = self.path / "metrics.jsonl"
        lines = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            # The process may have been killed in the middle of one.
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def forget_after(self, step: int) -> None:
        """Drops metrics of later steps, which a resumed run will write again."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        kept = [line for line in self.metrics() if line["step"] <= step]
        partial = file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, file)

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Keeps what is costly to compute (`<name>.json`) for a resumed run."""
        write_checked_json(self.path / f"{name}.json", value)

    def recall(self, name: str) -> dict[str, Any] | None:
        """What `remember` kept, or None.

        Raises:
            ValueError: the file is damaged.
        """
        file = self.path / f"{name}.json"
        return read_checked_json(file) if file.exists() else None


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
