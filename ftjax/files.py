"""Small files, written whole or not at all, and checked when read."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"


def write_json_atomically(path: str | Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it.

    Raises:
        ValueError: a number that is no number, which JSON has no word for.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} was to hold a number that is none ({error}).") from error
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names the file that is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error


def write_checked_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, atomically, with the SHA-256 of its content as its last key."""
    write_json_atomically(path, {**value, CHECKSUM: _checksum(value)})


def read_checked_json(path: str | Path) -> dict[str, Any]:
    """What `write_checked_json` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not what was written.
    """
    value = read_json(path)
    expected = value.pop(CHECKSUM, None) if isinstance(value, dict) else None
    if expected is None or _checksum(value) != expected:
        raise ValueError(
            f"{path} is damaged or was edited: its checksum is wrong. Restore it from a copy, or "
            "delete the run folder and start anew."
        )
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    # Keys become text in JSON; so they do here, that both sides see the same.
    plain = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()
