"""manifest.json: what a run was made of, so that it can be repeated."""

import datetime
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ftjax.files import read_checked_json, write_checked_json

PACKAGES = (
    *("absl-py", "array-record", "flax", "ftjax", "grain", "jax", "jaxlib", "ml-collections"),
    *("numpy", "optax", "orbax-checkpoint", "safetensors", "scikit-learn", "scipy"),
    *("tensorflow-datasets", "tokenizers", "transformers"),
)

SECRET_NAME = r"(?i:token|password|passwd|secret|credentials?|(?:api|access|private)[_-]?key)"
# An address's user and password; a token of the Hugging Face hub.
SECRET_VALUE = re.compile(r"(?<=://)[^/@\s]+(?=@)|\bhf_\w{20,}")


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
    manifest = read_checked_json(path) if path.exists() else {**made_of, "sessions": []}
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
            "seconds": 0.0,
            "status": "running",
            "host": socket.gethostname(),
            "command": without_secrets(sys.argv),
            "code": code_version(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "platform": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "devices": devices,
        }
    )
    write_checked_json(path, manifest)


def note_reference(folder: Path, name: str, sha256: str) -> None:
    """Notes what network a loss compares with.

    Args:
        folder: the run's.
        name: for a person.
        sha256: of its parameters.
    """
    path = folder / "manifest.json"
    write_checked_json(
        path, {**read_checked_json(path), "reference": {"name": name, "sha256": sha256}}
    )


def note_seconds(folder: Path, seconds: float) -> float:
    """Notes how long the last session has lasted; returns the seconds of all sessions.

    A session that is killed keeps what was noted last.
    """
    path = folder / "manifest.json"
    manifest = read_checked_json(path)
    manifest["sessions"][-1]["seconds"] = round(seconds, 3)
    write_checked_json(path, manifest)
    return sum(session["seconds"] for session in manifest["sessions"])


def finish_manifest(folder: Path, *, status: str) -> None:
    """Closes the last session.

    Args:
        folder: the run's.
        status: "finished", "stopped" or "failed".
    """
    path = folder / "manifest.json"
    manifest = read_checked_json(path)
    manifest["sessions"][-1] |= {"finished": _now(), "status": status}
    write_checked_json(path, manifest)


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 of a flat config, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def code_version() -> dict[str, Any]:
    """The commit of the ftjax checkout and whether its code differs; None, and why, without one."""
    checkout = Path(__file__).resolve().parents[2]
    try:
        top, commit = _git(checkout, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        # Installed into another project's environment, ftjax lies inside that project's checkout.
        if Path(top).resolve() != checkout:
            return {"commit": None, "dirty": None, "reason": "ftjax is installed, not checked out"}
        return {"commit": commit, "dirty": bool(_git(checkout, "status", "--porcelain", "ftjax"))}
    except FileNotFoundError:
        return {"commit": None, "dirty": None, "reason": "git is not installed"}
    except subprocess.CalledProcessError as error:
        return {"commit": None, "dirty": None, "reason": error.stderr.strip()}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def without_secrets(words: list[str]) -> list[str]:
    """A command line without the values of `--token`, `--password` and their like.

    Of an address, the user and password go, and what is after `token=`.
    """
    shown = []
    for previous, word in itertools.pairwise(["", *words]):
        if re.fullmatch(f"-.*{SECRET_NAME}", previous) and not word.startswith("-"):
            word = "(removed)"
        word = re.sub(f"({SECRET_NAME}=).+", r"\1(removed)", word, flags=re.DOTALL)
        shown.append(SECRET_VALUE.sub("(removed)", word))
    return shown


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """The name of the CPU."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    found = re.search(r"model name\s*:\s*(.+)", info)
    return found[1] if found else platform.processor()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
