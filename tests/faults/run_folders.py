"""Damages the files of a run folder, one at a time, as disks, copies and editors do."""

import dataclasses
import itertools
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def _cut(file: Path, generator: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: generator.randrange(max(len(content), 1))])


def _one_digit(file: Path, generator: random.Random) -> None:
    """Another digit in a text, another bit elsewhere."""
    content = bytearray(file.read_bytes())
    digits = [match.start() for match in re.finditer(rb"\d", content)]
    if file.suffix in (".json", ".jsonl") and digits:
        place = generator.choice(digits)
        content[place] = ord("0") + (content[place] - ord("0") + generator.randrange(1, 10)) % 10
    elif content:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def _removed(file: Path, generator: random.Random) -> None:
    file.unlink()


def _swapped(file: Path, generator: random.Random) -> None:
    """With another file of the folder, one of its kind where there is one."""
    others = [other for other in sorted(_top(file).rglob("*")) if other.is_file() and other != file]
    alike = [other for other in others if other.name == file.name] or [
        other for other in others if other.suffix == file.suffix
    ]
    other = generator.choice(alike or others)
    mine, its = file.read_bytes(), other.read_bytes()
    file.write_bytes(its)
    other.write_bytes(mine)


def _emptied(file: Path, generator: random.Random) -> None:
    file.write_bytes(b"")


def _other_type(file: Path, generator: random.Random) -> None:
    values = (b"[]", b"null", b"3", b'"text"', b"{}", b'{"sha256": 1}', b"[" * 10**5, b"\xff\xfe{")
    file.write_bytes(generator.choice(values))


def _folder(file: Path, generator: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _doubled(file: Path, generator: random.Random) -> None:
    file.write_bytes(file.read_bytes() * 2)


def _folder_removed(file: Path, generator: random.Random) -> None:
    """The folder around a file, with all that is in it."""
    around = file.parent
    if around == _top(file):
        file.unlink()
    else:
        shutil.rmtree(around)


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": _cut,
    "one digit": _one_digit,
    "removed": _removed,
    "swapped": _swapped,
    "emptied": _emptied,
    "other type": _other_type,
    "a folder": _folder,
    "doubled": _doubled,
    "folder removed": _folder_removed,
}


@dataclasses.dataclass(frozen=True)
class Damage:
    """One file of a run folder, and what happens to it.

    Attributes:
        file: relative to the run folder.
        kind: one of KINDS.
        seed: of what is drawn.
    """

    file: str
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} ({self.seed})"

    def do(self, folder: Path) -> None:
        """Damages the folder."""
        KINDS[self.kind](folder / self.file, random.Random(f"{self.file} {self.seed}"))


def damages(folder: Path, seed: int) -> Iterator[Damage]:
    """Every kind of damage to every file, in an order drawn by the seed.

    What ftjax writes itself and the many files inside of checkpoints take turns.
    """
    files = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    pairs = [
        Damage(str(file), kind, seed) for file in files if file.name != "lock" for kind in KINDS
    ]
    random.Random(seed).shuffle(pairs)
    inside = [damage for damage in pairs if "checkpoints" in Path(damage.file).parts]
    own = [damage for damage in pairs if "checkpoints" not in Path(damage.file).parts]
    for couple in itertools.zip_longest(own, inside):
        yield from filter(None, couple)


def _top(file: Path) -> Path:
    """The run folder that a file lies in."""
    return next(p for p in reversed(file.parents) if (p / "lock").exists())
