"""Tone as a classifier judges it: of writers that differ, that do not, and at the edges."""

import numpy as np
import pytest

from ftjax.data.asked import Asked
from ftjax.evaluation.answers import Answers
from ftjax.evaluation.measurement import Measurement

PEOPLE = [f"Sure thing! One {what} coming right up!" for what in ("latte", "mocha", "tea", "juice")]
MACHINE = [f"As a model, I cannot order {what} for you." for what in ("latte", "mocha", "tea", "a")]


def answers(validation, test):
    asked = {
        name: [Asked([1], "What would you like?", text) for text in texts]
        for name, texts in (("validation", validation), ("test", test))
    }
    return Answers(asked, Measurement({}, lambda network, batch: batch, lambda found: found))


def test_writers_that_differ_are_told_apart():
    found = answers(PEOPLE, PEOPLE[::-1])
    before = {"validation": MACHINE, "test": MACHINE}
    after = {"test": [*PEOPLE[:3], MACHINE[0]]}
    scores = found.scores(before, after)
    shares = {name: scores[f"tone/{name}"] for name in ("accuracy", "people", "before", "after")}
    assert shares == {"accuracy": 1.0, "people": 1.0, "before": 0.0, "after": 0.75}
    assert scores["answers/chrf_before"] < scores["answers/chrf_after"]
    assert found.scores(before, {"test": PEOPLE[::-1]})["answers/chrf_after"] == pytest.approx(100)
    low, high = found.intervals(before, after)["tone/after"]
    assert low < 0.75 < high
    assert found.side_by_side(before, after)[3] == {
        "question": "What would you like?",
        "person": PEOPLE[0],
        "before": MACHINE[3],
        "after": MACHINE[0],
    }


def test_of_writers_that_are_alike_it_says_nothing():
    """Whatever it guesses, it is right about one of both."""
    found = answers(PEOPLE, PEOPLE)
    scores = found.scores({"validation": PEOPLE, "test": PEOPLE}, {"test": PEOPLE})
    assert scores["tone/accuracy"] == 0.5
    assert scores["tone/people"] == scores["tone/before"] == scores["tone/after"]


@pytest.mark.parametrize("said", ["", " ", "☕"])
def test_one_answer_or_none(said):
    found = answers(["Hi there!"], ["Hello."])
    scores = found.scores({"validation": [said], "test": [said]}, {"test": [said]})
    assert all(np.isfinite(list(scores.values())))
    assert scores["tone/before"] == scores["tone/after"]
