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
    "locate": set(),
    "config": set(),
    "models": {"randomness"},
    "losses": {"models"},
    "tuning": {"models", "penalties", "randomness"},
    "penalties": {"losses", "models"},
    "pretrained": {"files", "locate", "models", "tuning"},
    "data": {"files", "locate"},
    "evaluation": {"files"},
    "runs": {"config", "files"},
    "tasks": {
        *("config", "data", "evaluation", "files", "locate", "losses", "models", "pretrained"),
        "randomness",
    },
    "training": {
        *("config", "data", "evaluation", "files", "locate", "losses", "models", "penalties"),
        *("pretrained", "randomness", "runs", "tasks", "tuning"),
    },
    "use": {
        *("config", "data", "evaluation", "files", "locate", "models", "pretrained", "runs"),
        *("tasks", "training", "tuning"),
    },
    "command_line": {"config", "locate"},
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
