"""Every experiment file, with each of its variants, is a valid config."""

from pathlib import Path

import pytest

from ftjax.config import validate
from ftjax.experiment import load_experiment

FILES = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))
ARGUMENTS = {"causal_text": "my_text.txt"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_variant_is_valid(file):
    experiment = load_experiment(file, ARGUMENTS.get(file.stem))
    validate(experiment.config)
    for name in experiment.ablations:
        validate(experiment.variant(name))
