"""Members of archives, read into memory without unpacking anything to a disk."""

import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

# Far above what our data sets hold, far below what a forged archive can claim.
LARGEST_MEMBER_BYTES = 2**30


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
                if member.name in names and member.isreg():
                    found[member.name] = archive.extractfile(member).read()
                if len(found) == len(names):
                    break
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a tar archive ({error}).") from error
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{path} holds no file {', '.join(missing)}.")
    return found
