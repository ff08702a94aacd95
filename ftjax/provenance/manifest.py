"""manifest.json: what a run was made of, so that it can be repeated."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ftjax.files import read_json, write_json_atomically

PACKAGES = (
    *("absl-py", "array-record", "flax", "ftjax", "grain", "jax", "jaxlib", "ml-collections"),
    *("numpy", "optax", "orbax-checkpoint", "safetensors", "scikit-learn", "scipy"),
    *("tensorflow-datasets", "tokenizers", "transformers"),
)


def start_manifest(
    folder: Path,
    *,
    config: dict[str, Any],
    weights: dict[str, str],
    datasets: dict[str, str],
    devices: list[str],
) -> None:
    """Writes the manifest, or adds a session to it when a run is continued.

    Args:
        folder: the run's.
        config: flat.
        weights: reference -> SHA-256.
        datasets: split -> SHA-256.
        devices: what the run computes on.

    Raises:
        ValueError: a continued run would go on with other weights or data.
    """
    path = folder / "manifest.json"
    made_of = {
        "config_hash": config_hash(config),
        "seed": config["seed"],
        "weights_sha256": weights,
        "datasets_sha256": datasets,
    }
    manifest = read_json(path) if path.exists() else {**made_of, "sessions": []}
    for name, value in made_of.items():
        if manifest[name] != value:
            raise ValueError(
                f"{path}: {name} was {manifest[name]} when the run began and is {value} now. A run "
                "goes on only with what it began with; choose another --workdir."
            )
    manifest["sessions"].append(
        {
            "started": _now(),
            "finished": None,
            "status": "running",
            "host": socket.gethostname(),
            "command": [_without_secrets(word) for word in sys.argv],
            "code": code_version(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "devices": devices,
        }
    )
    write_json_atomically(path, manifest)


def finish_manifest(folder: Path, *, status: str) -> None:
    """Closes the last session.

    Args:
        folder: the run's.
        status: "finished", "stopped" or "failed".
    """
    path = folder / "manifest.json"
    manifest = read_json(path)
    manifest["sessions"][-1] |= {"finished": _now(), "status": status}
    write_json_atomically(path, manifest)


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 of a flat config, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def code_version() -> dict[str, Any]:
    """The commit of the ftjax checkout and whether files differ from it; None outside git."""
    folder = Path(__file__).resolve().parents[2]
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "ftjax"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _without_secrets(word: str) -> str:
    word = re.sub(r"://[^/@\s]+@", "://", word)
    return re.sub(r"((?:token|password|secret|key)[\w.-]*=).+", r"\1(removed)", word, flags=re.I)


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*:\s*(.+)", info)[1]
    except (OSError, TypeError):
        return platform.processor()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
