"""Imports point one way: a room only knows the rooms before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ftjax

PACKAGE = Path(ftjax.__file__).parent

# What each room may import, besides itself, in the order in which they stand on one another.
GROUND = ("fields", "files", "interrupt", "pinned", "progress", "randomness")
ALLOWED = {
    **{room: set() for room in GROUND},
    "locate": {"pinned"},
    "models": {"randomness"},
    "losses": {"models"},
    "data": {"fields", "files", "locate", "progress"},
    "penalties": {"data", "fields", "losses", "models"},
    "tuning": {"fields", "models", "randomness"},
    "pretrained": {"files", "locate", "models", "tuning"},
    "evaluation": {"data", "fields", "models", "progress"},
    "runs": {"files"},
    "objectives": {
        *("data", "evaluation", "fields", "files", "losses", "models", "pretrained"),
        *("progress", "randomness"),
    },
    "config": {"data", "fields", "objectives", "penalties", "tuning"},
    "experiment": {"config", "fields"},
    "training": {
        *("config", "data", "evaluation", "fields", "files", "interrupt", "locate", "losses"),
        *("models", "objectives", "penalties", "pretrained", "progress", "randomness"),
        *("runs", "tuning"),
    },
    "use": {
        *("config", "data", "evaluation", "files", "locate", "models", "objectives"),
        *("pretrained", "runs", "training", "tuning"),
    },
    "commands": {
        *("command_line", "config", "data", "experiment", "files", "locate", "models"),
        *("pretrained", "progress", "runs", "training", "use"),
    },
    "command": {"interrupt"},
    "command_line": {"interrupt", "locate"},
}


def rooms_imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "ftjax"
            names = [f"ftjax.{a.name}" for a in node.names] if whole else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("ftjax.")}
    return found


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_direction_of_imports(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    beyond = rooms_imported(file) - ALLOWED[room] - {room}
    assert not beyond, f"{file.name} in {room} imports {sorted(beyond)}"


def test_what_a_run_leaves_is_read_without_jax():
    modules = [f"ftjax.runs.{file.stem}" for file in (PACKAGE / "runs").glob("[a-z]*.py")]
    script = f"import sys, {', '.join(modules)}; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, check=False)
    assert modules and done.returncode == 0


def test_files_are_under_500_lines():
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tests").rglob("*.py")]
    long = {f.name: n for f in files if (n := len(f.read_text("utf-8").splitlines())) > 500}
    assert not long
