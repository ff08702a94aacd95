"""Imports point one way: a room only knows the rooms before it."""

import ast
from pathlib import Path

import pytest

import ftjax

PACKAGE = Path(ftjax.__file__).parent

# What each room may import, besides itself. `models`, `objectives` and `tuning` know nothing of
# files, devices or run folders.
ALLOWED = {
    "files": set(),
    "randomness": set(),
    "config": set(),
    "models": {"randomness"},
    "objectives": {"models"},
    "tuning": {"models", "objectives", "randomness"},
    "pretrained": {"files", "models", "tuning"},
    "data": {"files", "pretrained"},
    "provenance": {"files"},
    "evaluation": {"files"},
    "tasks": {
        *("config", "data", "evaluation", "files", "models", "objectives", "pretrained"),
        "randomness",
    },
    "training": {
        *("config", "data", "evaluation", "files", "models", "objectives", "pretrained"),
        *("provenance", "randomness", "tasks", "tuning"),
    },
    "finished_run": {
        *("config", "files", "models", "pretrained", "tasks", "training", "tuning"),
    },
    "command_line": {"config", "pretrained"},
    "predict": {
        *("data", "evaluation", "finished_run", "training"),
    },
    "chat": {
        *("data", "files", "finished_run", "models", "pretrained", "tuning"),
    },
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
