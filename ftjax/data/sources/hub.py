"""Data sets of the Hugging Face hub, as files; no script of a repository is ever run."""

import re
from pathlib import Path

from ftjax.data.sources.files import (
    KINDS,
    FoundFiles,
    choose_config,
    files_of_folder,
)
from ftjax.data.sources.formats import DataFile
from ftjax.data.sources.records import BadDataError
from ftjax.locate import hub_listing, hub_snapshot

PREFIX = "hf://datasets/"


def find_hub_files(source: str) -> FoundFiles:
    """The files of hf://datasets/org/name[@revision][/config], fetched if need be.

    Only those of the configuration are fetched.

    Raises:
        BadDataError: a malformed address, no files that can be read, or no such configuration.
        FileNotFoundError, PermissionError, ConnectionError: as `ftjax.locate.locate`.
    """
    match = re.fullmatch(
        r"(\w[\w.-]*/\w[\w.-]*)(?:@(refs/[\w.-]+/[\w.-]+|[\w.-]+))?(?:/([\w.-]+))?",
        source.removeprefix(PREFIX),
    )
    if not match:
        raise BadDataError(
            f"{source}: expected hf://datasets/org/name, with @revision and /config if you like."
        )
    repository, revision, config = match.groups()
    wanted = {"repo_id": repository, "revision": revision, "repo_type": "dataset"}
    name = source.removeprefix("hf://")
    # Small, always there, and enough to be told what is wrong with an address.
    start = hub_snapshot(name, **wanted, allow_patterns=["README.md", ".gitattributes"])
    names = hub_listing(**wanted)
    if names is None:
        # Without a network, what was fetched before.
        names = [file.relative_to(start).as_posix() for file in start.rglob("*")]
    card = start / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    chosen = choose_config(names, text, config, source)
    files = (
        chosen if isinstance(chosen, list) else [name for part in chosen.values() for name in part]
    )
    if not any(DataFile(Path(), file).kind in KINDS for file in files):
        raise BadDataError(
            f"{source} holds no files of {', '.join(KINDS)}, only what a script of its own reads, "
            f"which is not run. Try {PREFIX}{repository}@refs/convert/parquet."
        )
    literal = [re.sub(r"([*?\[])", r"[\1]", file) for file in files]
    folder = hub_snapshot(name, **wanted, allow_patterns=[*literal, "README.md"])
    return files_of_folder(folder, source, config)
