"""Members of archives, read into memory without unpacking anything to a disk."""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

# Far above what our data sets hold, far below what a forged archive can claim.
LARGEST_MEMBER_BYTES = 2**30

# Texts compress to a tenth, tables of equal rows to a fiftieth; a bomb to a thousandth.
MOST_COMPRESSED = 100
ALWAYS_ALLOWED_BYTES = 2**28

# What Python's module makes of files that are no zip archives, or damaged ones.
DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, KeyError, NotImplementedError, RuntimeError),
)


def allowed_bytes(compressed: int) -> int:
    """How much may come out of a compressed file of so many bytes."""
    return max(ALWAYS_ALLOWED_BYTES, MOST_COMPRESSED * compressed)


def read_gzip(path: str | Path) -> bytes:
    """The content of a .gz file.

    Raises:
        ValueError: it is damaged, or holds far more than its size can mean.
    """
    allowed = allowed_bytes(Path(path).stat().st_size)
    try:
        with gzip.open(path) as file:
            content = file.read(allowed + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}).") from error
    return _not_too_much(content, allowed, str(path))


def zip_members(path: str | Path) -> list[str]:
    """Names of the files in a .zip file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [member.filename for member in archive.infolist() if not member.is_dir()]
    except DAMAGED_ZIP as error:
        raise ValueError(f"{path} cannot be read as a zip archive ({error}).") from error


def read_zip_member(path: str | Path, name: str) -> bytes:
    """The content of one file of a .zip file; nothing is written, so no name leads anywhere.

    Raises:
        ValueError: it is damaged, encrypted, or holds far more than its size can mean.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(name)
            if member.flag_bits & 1:
                raise ValueError("it is encrypted")
            allowed = allowed_bytes(Path(path).stat().st_size)
            if member.file_size > allowed:
                raise ValueError(f"it announces {member.file_size:,} bytes")
            with archive.open(member) as file:
                content = file.read(allowed + 1)
    except DAMAGED_ZIP as error:
        raise ValueError(f"{path}: {name} cannot be unpacked ({error}).") from error
    return _not_too_much(content, allowed, f"{path}: {name}")


def _not_too_much(content: bytes, allowed: int, name: str) -> bytes:
    if len(content) > allowed:
        raise ValueError(
            f"{name} unpacks to more than {allowed:,} bytes, far more than a text of its size can "
            "hold; refused."
        )
    return content


def read_tar_members(path: str | Path, names: Sequence[str]) -> dict[str, bytes]:
    """Contents of the named files of a tar archive, compressed or not.

    Nothing is written, so that no name, link or device of the archive can lead anywhere.

    Raises:
        ValueError: the archive is damaged, lacks a file, has something else of that name (a link),
            or announces more than `LARGEST_MEMBER_BYTES` up to the last of them.
    """
    found: dict[str, bytes] = {}
    announced = 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                announced += member.size
                if announced > LARGEST_MEMBER_BYTES:
                    raise ValueError(
                        f"{path} announces more than {LARGEST_MEMBER_BYTES:,} bytes; refused."
                    )
                file = archive.extractfile(member) if member.isreg() else None
                if member.name in names and file is not None:
                    found[member.name] = file.read()
                if len(found) == len(names):
                    break
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a tar archive ({error}).") from error
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{path} holds no file {', '.join(missing)}.")
    return found
