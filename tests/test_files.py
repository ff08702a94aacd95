import json
import os

import pytest

from ftjax.files import read_json, write_json_atomically


def test_what_is_written_is_read(tmp_path):
    value = {"text": "é漢", "number": 0.1, "nothing": None, "list": [1, "two"]}
    write_json_atomically(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_bytes().decode("utf-8")) == value
    assert read_json(str(tmp_path / "x.json")) == value
    write_json_atomically(tmp_path / "x.json", [])
    assert read_json(tmp_path / "x.json") == []
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("broken", ["write", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "x.json"
    write_json_atomically(path, {"old": 1})

    def fail(*_):
        raise OSError("disk full")

    if broken == "replace":
        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_json_atomically(path, {"new": 1})
    else:
        with pytest.raises(TypeError):
            write_json_atomically(path, {"new": 1, "unwritable": object()})
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1} rest'])
def test_what_is_not_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.json"):
        read_json(tmp_path / "x.json")
