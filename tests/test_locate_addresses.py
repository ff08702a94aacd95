"""Against a stand-in for the hub, a server of files, and a mirror."""

import errno
import hashlib
import http.server
import json
import threading

import pytest
from stand_in_hub import HubHandler, oid, running
from tiny import contents, leftovers

from ftjax import locate as module
from ftjax.locate import (
    fetch,
    locate,
)

COMMIT = "1" * 40
HUB = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(3000),
    "tokenizer.model": b"pieces",
    "spm.model": b"pieces",
    "source.spm": b"pieces",
    "bpe.codes": b"merges",
    "quantised/model-00001-of-00002.gguf": b"first",
    "quantised/model-00002-of-00002.gguf": b"second",
    "model.gguf": b"whole",
    "vocab.txt": b"words",
    "LICENSE": b"Apache-2.0",
    "README.md": b"# name",
    "pytorch_model.bin": b"a pickle",
    "model.pt": b"a pickle",
    "modeling_name.py": b"raise SystemExit",
}


class Answers(HubHandler):
    """The few answers of the hub's interface that a snapshot needs."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "/gated" in path:
            self.answer(b"", 403, X_Error_Code="GatedRepo")
        elif path.startswith("/api/models/org/name/revision/"):
            known = path.rpartition("/")[2] in ("main", "v1", COMMIT)
            if known:
                self.answer(json.dumps({"id": "org/name", "sha": COMMIT}).encode())
            else:
                self.answer(b"", 404, X_Error_Code="RevisionNotFound")
        elif path.startswith("/api/models/org/name/tree/"):
            files = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": oid(content),
                }
                for name, content in HUB.items()
            ]
            self.answer(json.dumps(files).encode())
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            content = HUB[path.removeprefix(f"/org/name/resolve/{COMMIT}/")]
            self.answer(content, ETag=f'"{oid(content)}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(cache, monkeypatch):
    with running(Answers, monkeypatch) as server:
        yield server


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_a_hub_repository_comes_without_pickles_and_code(hub, revision, cache):
    folder = locate(f"hf://org/name{revision}")
    assert cache in folder.parents
    wanted = {name for name in HUB if not name.endswith((".bin", ".pt", ".py", ".gguf"))}
    assert contents(folder) == {name: HUB[name] for name in wanted}


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_one_file_of_a_hub_repository(hub, revision):
    file = locate(f"hf://org/name/model.gguf{revision}")
    assert file.read_bytes() == b"whole"
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]
    part = locate(f"hf://org/name/quantised/model-00002-of-00002.gguf{revision}")
    assert part.read_bytes() == b"second"
    assert (part.parent / "model-00001-of-00002.gguf").read_bytes() == b"first"
    with pytest.raises(FileNotFoundError, match=r"the repository holds no other\.gguf"):
        locate(f"hf://org/name/other.gguf{revision}")


def test_a_hub_repository_in_the_cache_needs_no_network(hub):
    folder = locate("hf://org/name")
    hub.shutdown()
    hub.server_close()
    assert locate("hf://org/name") == folder
    with pytest.raises(ConnectionError, match=r"hf://org/other is not complete in the cache"):
        locate("hf://org/other")


def test_an_incomplete_hub_repository_is_not_taken_for_whole(hub):
    folder = locate("hf://org/name")
    (folder / "model.safetensors").unlink()
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match=r"not complete in the cache.*Check the network"):
        locate("hf://org/name")


def test_errors_of_the_hub_are_told_apart(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretverysecret")
    cases = {
        "hf://org/gated": (PermissionError, "accept its terms"),
        "hf://org/unknown": (FileNotFoundError, "no such repository or revision"),
        "hf://org/name@v2": (FileNotFoundError, "no such repository or revision"),
    }
    for reference, (kind, sentence) in cases.items():
        with pytest.raises(kind, match=sentence) as raised:
            locate(reference)
        assert "verysecret" not in str(raised.value)


@pytest.mark.parametrize(
    "reference", ["hf://", "hf://name", "hf://a/b/../c", "hf://a/b//c", "hf://org/na me"]
)
def test_a_malformed_hub_reference_is_refused(reference):
    with pytest.raises(ValueError, match="expected hf://org/name"):
        locate(reference)


# Public addresses


CONTENT = b"text,label\nhello,greeting\n"
SHA = hashlib.sha256(CONTENT).hexdigest()


class FileHandler(http.server.BaseHTTPRequestHandler):
    """Answers each path with what `answers` holds for it, one after the other."""

    def do_GET(self):
        status, content, announced = self.server.answers[self.path].pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(cache, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0)
    monkeypatch.delenv("FTJAX_MIRROR", raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FileHandler)
    server.answers = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


GOOD = (200, CONTENT, len(CONTENT))


def test_a_file_is_fetched_once(server, cache):
    server.answers["/a/b%20c.csv"] = [GOOD]
    file = fetch(f"{server.address}/a/b%20c.csv", SHA)
    assert (file.name, file.read_bytes()) == ("b c.csv", CONTENT)
    assert fetch(f"{server.address}/a/b%20c.csv", SHA) == file
    assert not leftovers(cache)


@pytest.mark.parametrize("bad", [(503, b"", 0), (200, CONTENT[:5], len(CONTENT))])
def test_what_is_refused_for_the_moment_or_broken_off_is_asked_for_again(server, bad):
    server.answers["/x.csv"] = [bad, GOOD]
    assert fetch(f"{server.address}/x.csv", SHA).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((404, b"", 0), FileNotFoundError, r"Nothing lies at 127.0.0.1:\d+/x.csv"),
        ((403, b"", 0), ConnectionError, "could not be fetched .HTTP status 403.*FTJAX_MIRROR"),
        ((200, b"other", 5), ValueError, "has SHA-256 .* expected"),
    ],
)
def test_what_cannot_be_had_is_told_and_nothing_kept(server, cache, answer, error, message):
    server.answers["/x.csv"] = [answer]
    with pytest.raises(error, match=message):
        fetch(f"{server.address}/x.csv", SHA)
    assert not list(cache.rglob("x.csv"))
    server.answers["/x.csv"] = [GOOD]
    assert fetch(f"{server.address}/x.csv", SHA).read_bytes() == CONTENT


def test_without_a_network_it_is_asked_once(server, cache, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("it waits"))
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"not be fetched .ConnectionError.*the network"):
        fetch(f"{server.address}/x.csv", SHA)


def test_the_mirror_comes_first_and_is_checked(tmp_path, monkeypatch, cache):
    file = tmp_path / "mirror/data.example.org/a/x.csv"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    monkeypatch.setenv("FTJAX_MIRROR", str(tmp_path / "mirror"))
    assert fetch("https://data.example.org/a/x.csv", SHA) == file
    file.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"mirror/data.example.org/a/x.csv has SHA-256"):
        fetch("https://data.example.org/a/x.csv", SHA)
    assert not cache.exists()
    monkeypatch.setenv("FTJAX_MIRROR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"FTJAX_MIRROR names .*elsewhere"):
        fetch("https://data.example.org/a/x.csv", SHA)


def test_what_the_mirror_lacks_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_MIRROR", str(tmp_path))
    server.answers["/x.csv"] = [GOOD]
    assert fetch(f"{server.address}/x.csv", SHA).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "address",
    [
        "data.example.org/x.csv",
        "file:///etc/passwd",
        "https://data.example.org",
        "https://data.example.org/",
        "https://data.example.org/a/../../x.csv",
        "https://data.example.org/a/%2e%2e/x.csv",
        "https://data.example.org/a%2f..%2fx.csv",
        "https://data.example.org/a\\x.csv",
        "https://data.example.org/x.csv?signature=secret",
        "https://user:secret@data.example.org/x.csv",
        "https://[secret/x.csv",
        "https://data.example.org:x/x.csv",
    ],
)
def test_an_address_that_is_no_plain_one_is_refused_without_its_secrets(address, cache):
    with pytest.raises(ValueError, match="not of the form https://host/path") as caught:
        fetch(address, SHA)
    assert "secret" not in str(caught.value)


def test_a_hash_that_is_none_is_refused(cache):
    with pytest.raises(ValueError, match=r"x.csv: 'abc' is no SHA-256"):
        fetch("https://data.example.org/x.csv", "abc")


def test_a_full_disk_is_told_with_its_folder(server, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_stream", full)
    with pytest.raises(OSError, match=r"no space left for .*files/127.*FTJAX_CACHE"):
        fetch(f"{server.address}/x.csv", SHA)
    assert not leftovers(cache)
