"""Splits of a source, read one after the other, and made where there are none."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

from ftjax.data.sources.files import SYNONYMS, FoundFiles, find_files, match_split
from ftjax.data.sources.formats import DataFile, read_file, text_of
from ftjax.data.sources.hub import PREFIX, find_hub_files
from ftjax.data.sources.plain_text import divide_text, paragraphs
from ftjax.data.sources.records import (
    ANSWERS,
    BadDataError,
    LeftOut,
    Places,
    Records,
    inside,
    joined_records,
    no_field,
    records_of_columns,
    require_few,
)
from ftjax.data.sources.splitting import SHARES, divide, draw, draw_of_each

if TYPE_CHECKING:
    from ftjax.data.catalog import TfdsDataset

SPLITS = ("train", "validation", "test")
TFDS = "tfds://"
# What a record's group is called until records are divided.
GROUP = "group"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Division:
    """How records are divided that come without splits.

    Attributes:
        splits: names of train, validation and test.
        shares: of the three; sums to 1.
        seed: of the drawing.
        group_field: column whose equal values stay together, or None.
        fill: whether a validation or test split that is missing beside others is taken from train.
    """

    splits: Sequence[str] = SPLITS
    shares: Sequence[float] = SHARES
    seed: int = 0
    group_field: str | None = None
    fill: bool = False


class Source:
    """A source whose splits are read one after the other; what they share is read once.

    Attributes:
        notes: what a person should know of how it was read.
        divided: whether the division was used.
        drawn: whether its seed made a difference.
        left_out: how many records were.
    """

    def __init__(
        self, reference: str, division: Division | None = None, *, skip_bad_records: bool = False
    ):
        """Finds the source; nothing is read yet.

        Args:
            reference: `tfds://name` or `tfds://name/config` for a TFDS data set (those of
                `ftjax.data.builders`, or any that TFDS can prepare without TensorFlow),
                `hf://datasets/org/name[@revision][/config]`, or a path as for `files.find_files`.
            division: what to do where there are no splits.
            skip_bad_records: whether records that cannot be read are left out, as long as they are
                few, or refused.

        Raises:
            FileNotFoundError: no such file.
            ValueError: nothing that can be read.
        """
        self.reference, self.division = reference, division or Division()
        self.notes: list[str] = []
        self.divided = self.drawn = False
        self.left_out = 0
        self._skips = skip_bad_records
        self._tables = _find(reference)
        self._read: dict[str, Records] = {}
        self._divisions: dict[str, dict[str, Records]] = {}

    def records(
        self,
        split: str,
        fields: Mapping[str, str],
        limit: int | None = None,
        shots: int | None = None,
    ) -> Records:
        """The records of a split.

        Args:
            split: its name (of TFDS, slices such as "train[:10%]" too); "" for all there are.
            fields: our name -> the source's column.
            limit: draw so many only.
            shots: draw so many of each class only.

        Raises:
            FileNotFoundError: no file of that split.
            ValueError: unknown split, no records, or some that cannot be read; says where.
        """
        found = (
            self._of_split(split, fields) if self._tables.splits else self._of_whole(split, fields)
        )
        if not len(found):
            raise BadDataError(f"{found.name} holds no records.")
        whole = len(found)
        if shots is not None:
            found = draw_of_each(found, shots, self.division.seed)
        if limit is not None:
            found = draw(found, limit, self.division.seed)
        self.drawn |= len(found) < whole
        return found

    def _of_whole(self, split: str, fields: Mapping[str, str]) -> Records:
        if not split:
            return self._table("", fields)
        if split not in self.division.splits:
            raise BadDataError(
                f"{self.reference} has no split {split!r}; it is divided into "
                f"{', '.join(self.division.splits)}."
            )
        return self._divided("", list(self.division.splits), fields)[split]

    def _of_split(self, split: str, fields: Mapping[str, str]) -> Records:
        known, train = self._tables.splits, self.division.splits[0]
        if not split:
            if len(known) == 1:
                return self._table(known[0], fields)
            raise BadDataError(
                f"{self.reference} has the splits {', '.join(known)}; give the path of one."
            )
        absent = [name for name in self.division.splits if self._match(name) is None]
        filled = [name for name in absent if _can_be_filled(name)] if self.division.fill else []
        if filled and split in (train, *filled) and train not in absent:
            return self._divided(train, [train, *filled], fields)[split]
        if (matched := self._match(split)) is None:
            self._refuse_split(split)
        return self._table(matched, fields)

    def _match(self, split: str) -> str | None:
        matched = self._tables.match(split)
        if matched is not None and matched != split:
            self._say(f"{split} is what {self.reference} calls {matched}.")
        return matched

    def _divided(
        self, split: str, into: list[str], fields: Mapping[str, str]
    ) -> dict[str, Records]:
        """What comes without splits, or the training split beside which others are missing."""
        if (key := f"{into} {sorted(fields.items())}") in self._divisions:
            return self._divisions[key]
        self.divided = True
        of = dict(zip(self.division.splits, self.division.shares, strict=True))
        shares = {name: of[name] / sum(of[name] for name in into) for name in into}
        group = self.division.group_field
        text = None if split or group else self._tables.plain_text(self._say)
        if text is not None:
            found, how = self._divided_text(text, shares, fields), "in order"
        elif group is not None:
            found, how = self._divided_by_group(split, shares, fields, group), f"by {group}"
        else:
            records = self._table(self._match(split) or "", fields)
            found = divide(records, shares, self.division.seed, None)
            how = "at random, each class in its share"
        told = " : ".join(f"{100 * share:.0f}" for share in shares.values())
        counts = ", ".join(f"{name} {len(part):,}" for name, part in found.items())
        self.drawn |= text is None
        what = f"{self.reference} has no {' and '.join(into[1:])}; {split}" if split else ""
        self._say(f"{what or self.reference} is divided {told} {how}: {counts}.")
        self._divisions[key] = found
        return found

    def _divided_by_group(
        self, split: str, shares: Mapping[str, float], fields: Mapping[str, str], group: str
    ) -> dict[str, Records]:
        records = self._table(self._match(split) or "", {**fields, GROUP: group})
        groups = [str(record[GROUP]) for record in records]
        records = records if GROUP in fields else records.without(GROUP)
        return divide(records, shares, self.division.seed, groups)

    def _divided_text(
        self, text: str, shares: Mapping[str, float], fields: Mapping[str, str]
    ) -> dict[str, Records]:
        """A plain text, in order: what comes last is what is tested."""
        parts, between = divide_text(text, self.reference, list(shares.values()))
        if between != "paragraphs":
            self._say(f"{self.reference} has few paragraphs and is divided between {between}.")
        return {split: _renamed(part, fields) for split, part in zip(shares, parts, strict=True)}

    def _table(self, split: str, fields: Mapping[str, str]) -> Records:
        """All records of a split of the source, or of what has none."""
        key = f"{split}\0{sorted(fields.items())}"
        if key not in self._read:
            left_out: LeftOut = [] if self._skips else None
            records = self._read[key] = self._tables.read(split, fields, self._say, left_out)
            if left_out:
                name, count = records.name, len(left_out) + len(records)
                self._say(f"{name}: {require_few(name, left_out, count)}")
                self.left_out += len(left_out)
            for ours in (name for name in fields if name not in ANSWERS):
                empty = [i for i, record in enumerate(records) if record[ours] == ""]
                if empty:
                    first = records.where(empty[0])
                    self._say(f"{len(empty):,} records have an empty {ours}, the first: {first}.")
        return self._read[key]

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _refuse_split(self, split: str) -> NoReturn:
        shown = ", ".join(self._tables.splits[:20])
        if "{split}" in self.reference:
            path = self.reference.replace("{split}", split)
            raise FileNotFoundError(
                f"There is no data file {path} (split {split!r}; there are: {shown}). In "
                "config.data.source, {split} stands for the split's name."
            )
        raise BadDataError(f"{self.reference} has no split {split!r}; it has: {shown}.")


def load_records(
    source: str, *, split: str, fields: Mapping[str, str], limit: int | None = None
) -> Records:
    """Reads one split of a source; see `Source`.

    Args:
        source: as for `Source`.
        split: its name, or "" for all there are.
        fields: our name -> the source's column.
        limit: draw so many only.

    Raises:
        FileNotFoundError, ValueError, ConnectionError, ImportError: as `Source` and its `records`.
    """
    return Source(source).records(split, fields, limit)


class _Tables(Protocol):
    """What all kinds of sources have in common.

    Attributes:
        splits: their names; none if nothing tells records apart.
    """

    splits: Sequence[str]

    def match(self, split: str) -> str | None:
        """The name that the source has for a split."""
        ...

    def read(self, split: str, fields: Mapping[str, str], say: Say, left_out: LeftOut) -> Records:
        """All records of a split, or of what has none."""
        ...

    def plain_text(self, say: Say) -> str | None:
        """The text, if it is one without splits."""
        ...


def _find(reference: str) -> _Tables:
    if reference.startswith(TFDS):
        # Not above: importing TFDS takes seconds that most sources need not wait for.
        from ftjax.data.catalog import open_dataset

        return _TfdsTables(open_dataset(reference.removeprefix(TFDS)))
    if reference.startswith(PREFIX):
        return _FileTables(find_hub_files(reference))
    if "://" in reference:
        raise BadDataError(
            f"{reference} is no address of data. Use tfds://name, "
            "hf://datasets/org/name[@revision][/config], or a path."
        )
    return _FileTables(find_files(reference))


class _FileTables:
    """Of files; see `_Tables`."""

    def __init__(self, found: FoundFiles):
        self._found = found
        self.splits: Sequence[str] = tuple(found.splits)

    def match(self, split: str) -> str | None:
        """By its name, or one that means the same."""
        return match_split(split, self.splits)

    def read(self, split: str, fields: Mapping[str, str], say: Say, left_out: LeftOut) -> Records:
        """Of all its files, in order."""
        files = self._found.splits[split] if split else self._found.whole
        parts = [_from_file(file, fields, say, left_out) for file in files]
        name = files[0].name if len(files) == 1 else f"{self._found.name} {split}".strip()
        return joined_records(name, parts)

    def plain_text(self, say: Say) -> str | None:
        """Of .txt files."""
        files = self._found.whole
        if not files or any(file.kind != ".txt" for file in files):
            return None
        return "\n\n".join(text_of(file, say) for file in files)


class _TfdsTables:
    """Of a TFDS data set; see `_Tables`."""

    def __init__(self, dataset: "TfdsDataset"):
        self._dataset = dataset
        self.splits: Sequence[str] = dataset.splits

    def match(self, split: str) -> str | None:
        """Splits and slices of them, by their own names."""
        return split if self._dataset.has(split) else None

    def read(self, split: str, fields: Mapping[str, str], say: Say, left_out: LeftOut) -> Records:
        """Read one by one."""
        name = f"{self._dataset.name} {split}"
        columns: dict[str, list] = {ours: [] for ours in fields}
        count = 0
        for count, row in enumerate(self._dataset.rows(split), start=1):
            for ours, theirs in fields.items():
                columns[ours].append(inside(row, ours, theirs, f"{name}, record {count}"))
        places = Places.of_file(f"{name}, record", range(1, count + 1))
        return records_of_columns(name, columns, fields, places, left_out)

    def plain_text(self, say: Say) -> str | None:
        """It is none."""
        return None


def _from_file(file: DataFile, fields: Mapping[str, str], say: Say, left_out: LeftOut) -> Records:
    if file.kind == ".txt":
        return _renamed(paragraphs(text_of(file, say), file.name), fields)
    return read_file(file, fields, say, left_out)


def _renamed(records: Records, fields: Mapping[str, str]) -> Records:
    """Paragraphs with our name."""
    for ours, theirs in fields.items():
        if theirs != "text" and len(records):
            no_field(records.where(0), ours, theirs, ["text"])
    return records.renamed(dict.fromkeys(fields, "text"))


def _can_be_filled(split: str) -> bool:
    """Whether a name says what the split is for, so that it is not one that was mistyped."""
    return any(split in names for kind, names in SYNONYMS.items() if kind != "train")
