"""How many steps a run takes, and what is said of settings that they never reach."""

import numpy as np
import pytest
from tiny import TINY

from ftjax.config import base_config, override
from ftjax.training.build import build
from ftjax.training.plan import make_plan, never_reached

# As a network of two blocks has it: the head, the blocks from the top, the embeddings.
PATHS = [
    *("head.kernel", "backbone.encoder.layer.1.kernel", "backbone.encoder.layer.0.kernel"),
    "backbone.embeddings.word_embeddings.embedding",
]


class Rows:
    """A hundred examples of one length."""

    buckets = (16,)
    lengths = np.full(100, 16)


def said(**changes):
    """Of runs of 13 steps in an epoch."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config = override(base_config(), TINY | {"training.epochs": 3.0} | changes)
    return never_reached(config, make_plan(config, Rows()), PATHS)


def test_what_is_reached_is_not_spoken_of():
    assert said() == []
    assert said(evaluation__every=39, training__checkpoint_every=39) == []
    assert said(evaluation__patience=1) == []
    assert said(tuning__unfreeze_epochs=1, training__epochs=3.1) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"evaluation__every": 40},
            "config.evaluation.every = 40 is beyond the 39 steps of this run: it is validated "
            "once, at the end.",
        ),
        (
            {"evaluation__patience": 2},
            "config.evaluation.patience = 2 cannot stop this run early: it has 3 validations.",
        ),
        (
            {"training__checkpoint_every": 40},
            "config.training.checkpoint_every = 40 is beyond the 39 steps of this run: there are "
            "checkpoints at validations only.",
        ),
        (
            {"tuning__unfreeze_epochs": 1},
            "config.tuning.unfreeze_epochs = 1: of 4 groups from the head down, the lowest 1 would "
            "begin to move only after the 39 steps of this run, and so never do.",
        ),
        (
            {"tuning__unfreeze_epochs": 2, "training__max_steps": 5},
            "config.tuning.unfreeze_epochs = 2: of 4 groups from the head down, the lowest 3 would "
            "begin to move only after the 5 steps of this run, and so never do.",
        ),
    ],
)
def test_what_is_never_reached_is_said(changes, sentence):
    assert said(**changes) == [sentence]


def test_a_run_says_it_and_keeps_it(tiny_config):
    told = []
    parts = build(override(tiny_config, {"evaluation.every": 10**6}), told.append)
    assert [note for note in parts.objective.notes if "evaluation.every" in note]
    assert [note for note in told if "evaluation.every" in note]


def test_more_steps_than_epochs_are_refused_before_the_network_is_loaded(tiny_config, monkeypatch):
    monkeypatch.setattr("ftjax.training.build.load_network", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"max_steps = 1000000 is above the \d+ steps"):
        build(override(tiny_config, {"training.max_steps": 10**6}))
