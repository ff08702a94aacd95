"""Every command of README and docs names a script, flags, an experiment and fields that exist."""

import re
import shlex
from pathlib import Path

import pytest

from ftjax.command_line import take_overrides
from ftjax.config import override
from ftjax.experiment import load_experiment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^    (python scripts/.+)$", text, flags=re.MULTILINE)


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_the_documentation(page, command):
    script, *arguments = shlex.split(command, comments=True)[1:]
    inside = ROOT / "ftjax" / "commands" / Path(script).name
    source = (inside if inside.exists() else ROOT / script).read_text(encoding="utf-8")
    defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    if script.endswith("benchmark.py"):
        for file in (ROOT / "scripts" / "side_by_side").glob("*.py"):
            defined |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', file.read_text(encoding="utf-8")))
    rest, fields = take_overrides(arguments)
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in rest)
    assert flags.keys() <= defined
    if "config" in flags:
        path, _, argument = flags["config"].partition(":")
        override(load_experiment(ROOT / path, argument or None).config, fields, parse=True)


def test_links_lead_to_pages():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_there_are_commands():
    assert len(COMMANDS) > 8
