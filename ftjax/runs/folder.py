"""A run is a folder: config.json, manifest.json, metrics.jsonl, result.json, checkpoints/."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax.config import base_config, flatten, override
from ftjax.files import read_json, write_json_atomically

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

    def claim(self, config: ConfigDict) -> None:
        """Makes the folder this config's, or finds that it already is.

        Raises:
            OSError: it cannot be written, or the disk is full.
            ValueError: it holds a run with another config; lists the fields that differ.
        """
        flat = json.loads(json.dumps(flatten(config)))
        file = self.path / "config.json"
        if file.exists():
            _refuse_another_config(self.path, read_json(file), flat)
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json_atomically(file, flat)
        except OSError as error:
            raise OSError(
                f"The run folder {self.path} cannot be written ({error}). Free space or choose "
                "another one with --workdir."
            ) from error
        if shutil.disk_usage(self.path).free < SMALLEST_FREE_BYTES:
            file.unlink()
            raise OSError(
                f"The disk of the run folder {self.path} is full. Free space or choose another one "
                "with --workdir."
            )

    def config(self) -> ConfigDict:
        """The run's config.

        Raises:
            FileNotFoundError: the folder holds no run.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"{self.path} holds no run: there is no config.json in it.")
        values = {name: _tuple(value) for name, value in read_json(file).items()}
        return override(base_config(), values)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends a line to metrics.jsonl. The same run writes the same lines, bit for bit."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops metrics of later steps, which a resumed run will write again."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] > step:
                    continue
            except ValueError:
                # The process was killed in the middle of this line.
                continue
            kept.append(line)
        partial = file.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, file)

    def remember(self, name: str, value: Any) -> None:
        """Keeps what is costly to compute (`<name>.json`) for a resumed run."""
        write_json_atomically(self.path / f"{name}.json", value)

    def recall(self, name: str) -> Any | None:
        """What `remember` kept, or None."""
        file = self.path / f"{name}.json"
        return read_json(file) if file.exists() else None


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


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
