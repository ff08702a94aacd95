"""Every experiment file, with each of its arguments and variants, is a valid config."""

import re
from pathlib import Path

import pytest

from ftjax.config import validate
from ftjax.experiment import load_experiment

FILES = sorted((Path(__file__).parents[1] / "experiments").rglob("*.py"))
ARGUMENTS = {"causal_text": ["my_text.txt"]}


def arguments(file):
    """None, where it takes one that has a default or takes none, and those of its Literal."""
    found = re.search(r"def get_config\(\w+: Literal\[(.+?)\]", file.read_text(encoding="utf-8"))
    choices = [text.strip().strip('"') for text in found[1].split(",")] if found else []
    return [*ARGUMENTS.get(file.stem, [None]), *choices]


CASES = [(file, argument) for file in FILES for argument in arguments(file)]


@pytest.mark.parametrize(
    ("file", "argument"), CASES, ids=lambda value: getattr(value, "stem", value)
)
def test_every_variant_is_valid(file, argument):
    experiment = load_experiment(file, argument)
    validate(experiment.config)
    for name in experiment.ablations:
        validate(experiment.variant(name))


def test_the_uses_say_what_a_gpu_does():
    uses = {file.stem for file, argument in CASES if argument == "gpu"}
    assert uses == {"support_chat", "medical_summary", "legal_clauses"}


@pytest.mark.parametrize(("argument", "nearest"), [("gpus", "did you mean gpu"), ("tpu", "")])
def test_an_argument_that_is_none_of_the_choices(argument, nearest):
    file = next(file for file in FILES if file.stem == "support_chat")
    problem = rf"support_chat\.py:{argument}: machine is one of :cpu, :gpu.*{nearest}"
    with pytest.raises(ValueError, match=problem):
        load_experiment(file, argument)
