"""Which files a path means, and which split each of them belongs to."""

import dataclasses
import fnmatch
import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

import yaml

from ftjax.data.archives import zip_members
from ftjax.data.sources import conll
from ftjax.data.sources.formats import ATOMIC, DataFile
from ftjax.data.sources.records import BadDataError
from ftjax.files import read_json

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather")
KINDS = (*TABLES, *ATOMIC, *conll.KINDS, ".txt")

# Names that say which split a file is of, as the Hugging Face hub reads them.
SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# What lies beside data without being data.
NO_DATA = re.compile(
    r"(readme|licen[cs]e|notice|citation|changelog|requirements|dataset_infos?|dataset_dict|state|"
    r"croissant|package|sample_submission|samplesubmission)\b",
    re.IGNORECASE,
)
PART = re.compile(r"[-_.](\d{1,6})-of-(\d{1,6})$")


@dataclasses.dataclass
class FoundFiles:
    """The files of a source.

    Attributes:
        name: of the source, for messages.
        splits: by the names that the files give them; empty if nothing tells files apart.
        whole: the files, if nothing tells them apart.
    """

    name: str
    splits: dict[str, list[DataFile]] = dataclasses.field(default_factory=dict)
    whole: list[DataFile] = dataclasses.field(default_factory=list)


def find_files(source: str) -> FoundFiles:
    """The files of a path.

    Args:
        source: a file (.zip and .gz too), a folder, or a path with `{split}` or `*` in it.

    Raises:
        FileNotFoundError: there is nothing.
        BadDataError: it holds no data, parts are missing, or files of several kinds.
    """
    path = Path(source).expanduser()
    if "{split}" in source:
        return _by_pattern(str(path))
    if path.is_dir():
        return files_of_folder(path)
    if path.is_file():
        if _is_zip(path):
            return _of_listing(str(path), _members(path))
        return FoundFiles(source, whole=[_known(DataFile(path))])
    if "*" in source:
        # What stands before the first star is no name that says anything of a split.
        fixed = len(str(path).partition("*")[0].rpartition("/")[0])
        found = _by_path(sorted(glob.glob(str(path), recursive=True)))
        return _of_listing(source, {name[fixed:].lstrip("/"): f for name, f in found.items()})
    raise FileNotFoundError(
        f"There is no data file {path}. config.data.source is a file, a folder, or a path in which "
        "{split} stands for the split's name."
    )


def files_of_folder(folder: Path, name: str | None = None, config: str | None = None) -> FoundFiles:
    """The files of a folder: saved by datasets.save_to_disk, laid out as on the hub, or plain.

    Args:
        folder: on this disk.
        name: of the source, for messages.
        config: which of the configurations that its README names, or of its folders.

    Raises:
        BadDataError: as `find_files`, or no such configuration.
    """
    name = name or str(folder)
    if found := _saved(folder, name):
        return found
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [file.relative_to(folder).as_posix() for file in files]
    card = folder / "README.md"
    chosen = choose_config(names, _text(card) if card.is_file() else "", config, name)
    if isinstance(chosen, Mapping):
        splits = {
            split: _one_kind([DataFile(folder / inside) for inside in inner], f"{name}, {split}")
            for split, inner in chosen.items()
        }
        return FoundFiles(name, splits=splits)
    return _of_listing(name, {inside: DataFile(folder / inside) for inside in chosen})


def choose_config(
    names: Sequence[str], card: str, config: str | None, where: str
) -> Mapping[str, list[str]] | list[str]:
    """The files of a configuration, by split where the card says so.

    Args:
        names: paths of all files, inside the folder or repository.
        card: README.md, whose header may list configurations as the hub understands them.
        config: the wanted one; the only or the default one if None.
        where: for messages.

    Raises:
        BadDataError: there are several and none was chosen, or no such one.
    """
    if configs := _configs_of_card(card):
        if config is None:
            default = [n for n, (_, is_default) in configs.items() if is_default or n == "default"]
            config = default[0] if default else next(iter(configs)) if len(configs) == 1 else None
        if config is None or config not in configs:
            _refuse_config(config, list(configs), where)
        return _matched(configs[config][0], names, where)
    data = [name for name in names if _is_data(name)]
    folders = sorted({PurePosixPath(name).parts[0] for name in data if "/" in name})
    if config is not None:
        if config not in folders:
            _refuse_config(config, folders, where)
        return [name for name in data if name.startswith(f"{config}/")]
    inner = [folder for folder in folders if folder != "data" and not _split_words(folder)]
    if len(inner) > 1 and all("/" in name for name in data):
        _refuse_config(None, inner, where)
    return data


def split_of(name: str) -> str:
    """The split that a file's name, or its nearest folder's, tells: a known word, or its stem."""
    path = PurePosixPath(name)
    stem = PART.sub("", re.sub(r"\.gz$", "", path.name).rpartition(".")[0] or path.name)
    for part in (stem, *reversed(path.parts[:-1])):
        words = _split_words(part)
        if len(words) == 1:
            return words.pop()
    return stem


def match_split(wanted: str, known: Sequence[str]) -> str | None:
    """Which of the known names a split is: itself, or the only one that means the same."""
    if wanted in known:
        return wanted
    same = [name for names in SYNONYMS.values() if wanted in names for name in names]
    found = [name for name in known if name.lower() in same]
    return found[0] if len(found) == 1 else None


def _split_words(name: str) -> set[str]:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return {word for names in SYNONYMS.values() for word in names if word in words}


def _of_listing(name: str, files: Mapping[str, DataFile]) -> FoundFiles:
    """Files by split, if the names of some say it; those that do not are then left out."""
    data = {inside: file for inside, file in files.items() if _is_data(inside)}
    if any(file.kind != ".txt" for file in data.values()):
        data = {inside: file for inside, file in data.items() if file.kind != ".txt"}
    if not data:
        raise BadDataError(f"{name} holds no data; known kinds are {', '.join(KINDS)}.")
    _refuse_missing_parts(list(data), name)
    splits: dict[str, list[DataFile]] = {}
    for inside in sorted(data, key=_natural):
        splits.setdefault(split_of(inside), []).append(data[inside])
    known = [word for names in SYNONYMS.values() for word in names]
    if not any(split in known for split in splits):
        whole = [data[inside] for inside in sorted(data, key=_natural)]
        return FoundFiles(name, whole=_one_kind(whole, name))
    return FoundFiles(
        name, splits={split: _one_kind(f, f"{name}, {split}") for split, f in splits.items()}
    )


def _by_pattern(pattern: str) -> FoundFiles:
    """What lies at a path with `{split}`, and perhaps `*`, in it."""
    pieces = re.split(r"(\{split\}|\*)", pattern)
    wild = "".join("*" if piece in ("{split}", "*") else glob.escape(piece) for piece in pieces)
    names = {"{split}": "(?P<split>[^/]+?)", "*": "[^/]*"}
    expression, seen = "", False
    for piece in pieces:
        again = piece == "{split}" and seen
        expression += "(?P=split)" if again else names.get(piece, re.escape(piece))
        seen = seen or piece == "{split}"
    splits: dict[str, dict[str, DataFile]] = {}
    # In whatever order the file system lists them.
    for file in sorted(glob.glob(wild), key=_natural):
        if match := re.fullmatch(expression, file):
            splits.setdefault(match["split"], {}).update(_by_path([file]))
    if not splits:
        raise FileNotFoundError(
            f"There is no data file {pattern}, whatever name of a split stands for {{split}}."
        )
    return FoundFiles(
        pattern,
        splits={
            split: _one_kind(_complete(files, pattern), f"{pattern}, {split}")
            for split, files in splits.items()
        },
    )


def _by_path(paths: Sequence[str]) -> dict[str, DataFile]:
    """Data files by name; of a .zip, its members; of a folder, what is in it."""
    found: dict[str, DataFile] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inner = sorted(str(file) for file in path.rglob("*") if file.is_file())
            found |= {name: f for name, f in _by_path(inner).items() if _is_data(name)}
        elif _is_zip(path):
            found |= {f"{path}/{n}": f for n, f in _members(path).items() if _is_data(n)}
        else:
            found[str(path)] = _known(DataFile(path))
    return found


def _complete(files: Mapping[str, DataFile], name: str) -> list[DataFile]:
    _refuse_missing_parts(list(files), name)
    return list(files.values())


def _members(path: Path) -> dict[str, DataFile]:
    return {name: DataFile(path, name) for name in zip_members(path)}


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts if part != "/")
    return not hidden and DataFile(Path(), name).kind in KINDS and not NO_DATA.match(path.name)


def _known(file: DataFile) -> DataFile:
    if file.kind not in KINDS:
        with open(file.path, "rb") as opened:
            start = opened.read(4)
        # What says by its content what it is needs no name for it.
        if start not in (b"PAR1", b"ARRO"):
            raise BadDataError(
                f"{file.name}: unknown kind of data. Use tfds://name, hf://datasets/org/name, or a "
                f"path ending in {', '.join(KINDS)} (or one of these and .gz), or .zip."
            )
    return file


def _one_kind(files: list[DataFile], name: str) -> list[DataFile]:
    kinds = sorted({file.kind for file in files})
    if len(kinds) > 1:
        raise BadDataError(
            f"{name} has files of several kinds ({', '.join(kinds)}), perhaps the same records "
            f"twice. Say which, such as folder/{{split}}{kinds[0]}."
        )
    return files


def _refuse_missing_parts(names: Sequence[str], where: str) -> None:
    """Of train-00000-of-00003 and -00002-of-00003, the one between is missing."""
    seen: dict[tuple[str, int], set[int]] = {}
    for name in names:
        stem = re.sub(r"(\.gz)$", "", name).rpartition(".")[0]
        if match := PART.search(stem):
            seen.setdefault((stem[: match.start()], int(match[2])), set()).add(int(match[1]))
    for (stem, count), numbers in seen.items():
        # Most count from 0, some from 1.
        if len(numbers) < count:
            missing = sorted(set(range(count)) - numbers)[0]
            raise BadDataError(
                f"{where}: {stem} comes in {count} parts and {len(numbers)} are there; part "
                f"{missing} is missing."
            )


def _natural(name: str) -> list:
    """Sorts part-2 before part-10."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def _saved(folder: Path, name: str) -> FoundFiles | None:
    """What datasets.save_to_disk left, one data set or several splits; None if it is none."""
    if (folder / "dataset_dict.json").is_file():
        inner = read_json(folder / "dataset_dict.json")
        splits = inner.get("splits") if isinstance(inner, dict) else None
        if not isinstance(splits, list) or not all(_is_simple(split) for split in splits):
            raise BadDataError(f"{folder / 'dataset_dict.json'} has no list of splits.")
        return FoundFiles(name, splits={split: _saved_files(folder / split) for split in splits})
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return FoundFiles(name, whole=_saved_files(folder))
    return None


def _saved_files(folder: Path) -> list[DataFile]:
    state = read_json(folder / "state.json")
    state = state if isinstance(state, dict) else {}
    entries = state.get("_data_files")
    names = [str(e.get("filename")) for e in entries or () if isinstance(e, dict)]
    if not names or not all(map(_is_simple, names)):
        raise BadDataError(f"{folder / 'state.json'} names no data files.")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise BadDataError(
            f"{folder} was saved with a selection of its rows beside them. Save it again after "
            "flatten_indices()."
        )
    for file in names:
        if not (folder / file).is_file():
            raise BadDataError(f"{folder} names {file} in state.json, which is missing.")
    return [DataFile(folder / file) for file in names]


def _is_simple(name: object) -> bool:
    """Whether a name stays inside its folder."""
    return isinstance(name, str) and re.fullmatch(r"[^/\\:\0]+", name) is not None and name != ".."


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _configs_of_card(card: str) -> dict[str, tuple[object, bool]]:
    """What the header of a README says: name of a configuration -> (data_files, is the default)."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, flags=re.DOTALL)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    configs = header.get("configs") if isinstance(header, dict) else None
    return {
        str(entry["config_name"]): (entry["data_files"], entry.get("default") is True)
        for entry in (configs if isinstance(configs, list) else ())
        if isinstance(entry, dict) and "config_name" in entry and "data_files" in entry
    }


def _matched(data_files: object, names: Sequence[str], where: str) -> Mapping[str, list[str]]:
    """The files of each split that a card's patterns mean."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        if isinstance(entry, dict) and "path" in entry:
            split, patterns = str(entry.get("split", "train")), entry["path"]
        else:
            split, patterns = "train", entry
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            found = [name for name in names if fnmatch.fnmatchcase(name, str(pattern))]
            splits.setdefault(split, []).extend(sorted(found, key=_natural))
    for split, found in splits.items():
        if not found:
            raise BadDataError(f"{where}: its README names files of {split} that are not there.")
        _refuse_missing_parts(found, where)
    return splits


def _refuse_config(config: str | None, known: Sequence[str], where: str) -> NoReturn:
    chosen = "needs a configuration" if config is None else f"has no configuration {config!r}"
    raise BadDataError(
        f"{where} {chosen}; it has: {', '.join(known[:20]) or 'none'}. Write it behind the name, "
        "such as hf://datasets/org/name/config, or folder/config."
    )
