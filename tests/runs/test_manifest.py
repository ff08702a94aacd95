import datetime
import hashlib
import importlib.metadata
import json
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ftjax.files import read_json
from ftjax.runs import manifest as module
from ftjax.runs.manifest import config_hash, finish_manifest, start_manifest

MADE_OF = {
    "config": {"seed": 7, "optimizer.learning_rate": 1e-4, "data.buckets": (8, 16)},
    "weights": {"hf://org/name": "a" * 64},
    "datasets": {"train": "b" * 64, "test": "c" * 64},
    "devices": ["cpu: cpu"],
}


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--config=x.py"])


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in which the module believes itself to be."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "checkout"
    file = folder / "ftjax" / "runs" / "manifest.py"
    file.parent.mkdir(parents=True)
    file.write_text("code = 1\n")
    monkeypatch.setattr(module, "__file__", str(file))
    # Git neither looks above the test's own folder nor into the caller's repository.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_a_manifest_says_what_the_run_is_made_of(tmp_path, command):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    start_manifest(tmp_path, **MADE_OF)
    manifest = read_json(tmp_path / "manifest.json")
    canonical = '{"data.buckets": [8, 16], "optimizer.learning_rate": 0.0001, "seed": 7}'
    assert manifest["config_hash"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert manifest["seed"] == 7
    assert manifest["weights_sha256"] == MADE_OF["weights"]
    assert manifest["datasets_sha256"] == MADE_OF["datasets"]
    (session,) = manifest["sessions"]
    assert session["status"] == "running"
    assert session["finished"] is None
    assert session["host"] == socket.gethostname()
    assert session["command"] == ["scripts/train.py", "--config=x.py"]
    assert session["devices"] == ["cpu: cpu"]
    assert session["python"] == platform.python_version()
    assert session["packages"]["jax"] == importlib.metadata.version("jax")
    assert session["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert session["cores"] >= 1
    started = datetime.datetime.fromisoformat(session["started"])
    assert before <= started <= datetime.datetime.now(datetime.UTC)


def test_a_finished_run_says_when_and_how(tmp_path, command):
    start_manifest(tmp_path, **MADE_OF)
    finish_manifest(tmp_path, status="stopped")
    (session,) = read_json(tmp_path / "manifest.json")["sessions"]
    assert session["status"] == "stopped"
    assert datetime.datetime.fromisoformat(session["finished"]).utcoffset() == datetime.timedelta()
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_a_continued_run_adds_a_session(tmp_path, command, monkeypatch):
    start_manifest(tmp_path, **MADE_OF)
    finish_manifest(tmp_path, status="stopped")
    first = read_json(tmp_path / "manifest.json")["sessions"][0]
    monkeypatch.setattr(sys, "argv", ["again"])
    start_manifest(tmp_path, **{**MADE_OF, "devices": ["gpu: H200"]})
    finish_manifest(tmp_path, status="finished")
    sessions = read_json(tmp_path / "manifest.json")["sessions"]
    assert sessions[0] == first
    assert [session["status"] for session in sessions] == ["stopped", "finished"]
    assert sessions[1]["command"] == ["again"]
    assert sessions[1]["devices"] == ["gpu: H200"]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("weights", "weights_sha256", {"hf://org/name": "0" * 64}),
        ("datasets", "datasets_sha256", {"train": "b" * 64}),
        ("config", "config_hash", {**MADE_OF["config"], "optimizer.learning_rate": 1e-3}),
    ],
)
def test_a_run_is_not_continued_with_something_else(tmp_path, command, name, field, value):
    start_manifest(tmp_path, **MADE_OF)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=rf"manifest\.json: {field} was .* is .* now.*--workdir"):
        start_manifest(tmp_path, **{**MADE_OF, name: value})
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_the_hash_of_a_config_ignores_the_order_of_fields_only():
    assert config_hash({"a": 1, "b": (2, 3)}) == config_hash({"b": [2, 3], "a": 1})
    others = [{"a": 1, "b": (3, 2)}, {"a": 1.5, "b": (2, 3)}, {"a": "1", "b": (2, 3)}, {"a": 1}]
    assert len({config_hash(config) for config in [{"a": 1, "b": (2, 3)}, *others]}) == 5


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--token=abc"], ["--token=(removed)"]),
        (["--config.hub.api_key=abc"], ["--config.hub.api_key=(removed)"]),
        (["--hf-token", "abc", "--seed", "1"], ["--hf-token", "(removed)", "--seed", "1"]),
        (["--token", "--seed=1"], ["--token", "--seed=1"]),
        (["HF_TOKEN=abc"], ["HF_TOKEN=(removed)"]),
        (["--data=https://me:abc@example.org/x"], ["--data=https://(removed)@example.org/x"]),
        (
            ["--data=https://example.org/x?token=abc"],
            ["--data=https://example.org/x?token=(removed)"],
        ),
        (["--text=hf_abcdefghijklmnopqrstuvwxyz"], ["--text=(removed)"]),
        (
            ["--config.data.max_tokens=5", "--tokenizer=x", "hf://org/name@main", ""],
            ["--config.data.max_tokens=5", "--tokenizer=x", "hf://org/name@main", ""],
        ),
    ],
)
def test_secrets_do_not_reach_the_manifest(tmp_path, monkeypatch, given, kept):
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    monkeypatch.setenv("HF_TOKEN", "environment-secret")
    start_manifest(tmp_path, **MADE_OF)
    assert read_json(tmp_path / "manifest.json")["sessions"][0]["command"] == ["train.py", *kept]
    assert "environment-secret" not in (tmp_path / "manifest.json").read_text()


def test_the_code_is_named_by_its_commit(checkout):
    git(checkout, "init")
    git(checkout, "add", "ftjax")
    git(checkout, "commit", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not code")
    assert module.code_version() == {"commit": commit, "dirty": False}
    (checkout / "ftjax" / "new.py").write_text("code = 2\n")
    assert module.code_version() == {"commit": commit, "dirty": True}


def test_code_outside_a_checkout_says_why_it_has_no_commit(checkout, monkeypatch):
    version = module.code_version()
    assert (version["commit"], version["dirty"]) == (None, None)
    assert "not a git repository" in version["reason"]
    monkeypatch.setenv("PATH", "")
    assert module.code_version()["reason"] == "git is not installed"


def test_the_commit_of_another_project_around_an_installed_ftjax_is_not_taken(checkout):
    git(checkout.parent, "init")
    git(checkout.parent, "commit", "--allow-empty", "-m", "theirs")
    assert module.code_version()["commit"] is None
    assert "installed" in module.code_version()["reason"]


def test_finishing_what_was_not_started_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        finish_manifest(tmp_path, status="finished")


def test_a_damaged_manifest_is_named(tmp_path, command):
    (Path(tmp_path) / "manifest.json").write_text(json.dumps({"seed": 7})[:-3])
    with pytest.raises(ValueError, match=r"manifest\.json is not valid JSON"):
        start_manifest(tmp_path, **MADE_OF)
