import pytest

from ftjax.runs.curves import curves, draw
from ftjax.runs.folder import RunFolder


def run_with_metrics(path, offset=0.0):
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.log(10, {"train/loss": 1.5 + offset, "train/learning_rate": 1e-4})
    folder.log(10, {"validation/loss": 1.4 + offset, "validation/accuracy": 0.5})
    folder.log(20, {"train/loss": 1.0 + offset, "train/learning_rate": 5e-5})
    return path


def test_metrics_of_all_splits_by_name(tmp_path):
    found = curves(run_with_metrics(tmp_path / "a"))
    assert found["loss"] == {"train": ([10, 20], [1.5, 1.0]), "validation": ([10], [1.4])}
    assert list(found) == ["loss", "learning_rate", "accuracy"]


def test_half_a_line_of_a_run_that_was_killed_is_passed_over(tmp_path):
    with open(run_with_metrics(tmp_path / "a") / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "train/lo')
    assert curves(tmp_path / "a")["loss"]["train"] == ([10, 20], [1.5, 1.0])


def test_a_run_that_logged_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here holds no metrics"):
        curves(tmp_path / "nothing_here")


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_runs_are_drawn_over_one_another(tmp_path, kind):
    runs = [run_with_metrics(tmp_path / "a"), run_with_metrics(tmp_path / "b", 0.1)]
    draw(runs, tmp_path / f"curves.{kind}")
    content = (tmp_path / f"curves.{kind}").read_bytes()
    assert content.startswith(b"\x89PNG" if kind == "png" else b"<?xml")


def test_an_ending_that_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match=r"end its name in \.png"):
        draw([run_with_metrics(tmp_path / "a")], tmp_path / "curves.xyz")
    assert not (tmp_path / "curves.xyz").exists()
