"""Small files, written whole or not at all, and checked when read."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"


class UnwrittenError(OSError):
    """Something could not be written.

    Attributes:
        reason: the system's.
    """

    def __init__(self, message: str, reason: str, number: int | None):
        super().__init__(message)
        self.reason = reason
        self.errno = number


@contextlib.contextmanager
def writing(place: str | Path, what: str, then: str) -> Iterator[None]:
    """Around what writes: a disk that is full, read-only or broken becomes a sentence.

    Args:
        place: the file or folder that is written.
        what: is written, as the subject of the sentence.
        then: further sentences: what is safe, and what to do.

    Raises:
        UnwrittenError: with the place, the reason, how much is free there, and `then`.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        if not isinstance(error, OSError):
            # Writers in other languages have errors of their own.
            if (said := os.strerror(errno.ENOSPC)) not in reason:
                raise
            reason, number = said, errno.ENOSPC
        told = f"{what} could not be written to {place} ({reason}{_room(Path(place), number)})."
        raise UnwrittenError(f"{told} {then}", reason, number) from error


def require_new(folder: str | Path) -> None:
    """Refuses a folder to make that is there.

    Raises:
        FileExistsError: it is.
    """
    if Path(folder).exists():
        raise FileExistsError(f"{folder} is there already; choose another or delete it.")


@contextlib.contextmanager
def new_folder(folder: str | Path, what: str) -> Iterator[Path]:
    """A folder to write in that gets its name, and is kept, only when all went well.

    Args:
        folder: to be made.
        what: is written, as the subject of a sentence.

    Raises:
        FileExistsError: the folder is there already.
        UnwrittenError: it cannot be written.
    """
    require_new(folder)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    told = writing(folder, what, "Nothing of it is left; free space, or choose another.")
    with told, tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "content"
        new.mkdir()
        yield new
        os.replace(new, folder)


def _room(place: Path, number: int | None) -> str:
    """How much is free, where that was the matter."""
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    there = next(path for path in (place, *place.absolute().parents) if path.exists())
    return f"; {shutil.disk_usage(there).free / 2**20:,.1f} MiB are free there"


def bytes_below(folder: str | Path) -> int:
    """Size of all files in a folder and its folders; what vanishes meanwhile does not count."""
    total = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(inside, name)).st_size
    return total


def write_json_atomically(path: str | Path, value: Any) -> None:
    """Writes JSON as `write_text_atomically` does.

    Raises:
        ValueError: a number that is no number, which JSON has no word for.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} was to hold a number that is none ({error}).") from error
    write_text_atomically(path, text + "\n")


def write_text_atomically(path: str | Path, text: str) -> None:
    """Writes UTF-8 so that a reader sees the old file or the new one, never half of it.

    Raises:
        OSError: it cannot be written; what was there is left as it is.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    then = "What was there before is safe; free space, or choose another place."
    with writing(path, f"{len(text) / 2**10:,.1f} KiB", then):
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: names the file that is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error


def write_checked_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, atomically; its last key is the SHA-256 of its content and file name.

    Raises:
        OSError, ValueError: as `write_json_atomically`.
    """
    write_json_atomically(path, {**value, CHECKSUM: _checksum(path, value)})


def read_checked_json(path: str | Path) -> dict[str, Any]:
    """What `write_checked_json` wrote.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it is not what was written there.
    """
    restore = "Restore it from a copy, or delete the run folder and start anew."
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise type(error)(f"{error} {restore}") from error
    expected = value.pop(CHECKSUM, None) if isinstance(value, dict) else None
    if expected is None or _checksum(path, value) != expected:
        raise ValueError(f"{path} is damaged or was edited: its checksum is wrong. {restore}")
    return value


def _checksum(path: str | Path, value: Mapping[str, Any]) -> str:
    # Keys become text in JSON; so they do here, that both sides see the same.
    plain = json.dumps([Path(path).name, json.loads(json.dumps(value))], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()
