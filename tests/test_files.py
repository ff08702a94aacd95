import json
import os
import shutil

import pytest

from ftjax.files import bytes_below, read_json, write_json_atomically


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


def test_what_vanishes_while_a_folder_is_measured_does_not_count(tmp_path, monkeypatch):
    """Something else may delete files and folders between a look at their names and at them."""
    for name in ("kept/a", "whole/b", "half/c", "half/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    assert bytes_below(tmp_path) == 12
    assert bytes_below(tmp_path / "none") == 0
    walk = os.walk

    def deleting(folder):
        for inside, folders, names in walk(folder):
            if not names:
                shutil.rmtree(tmp_path / "whole")
            if inside.endswith("half"):
                (tmp_path / "half" / "c").unlink()
            yield inside, folders, names

    monkeypatch.setattr(os, "walk", deleting)
    assert bytes_below(tmp_path) == 6
