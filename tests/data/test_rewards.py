"""Reward functions of a user, and what follows from what they say."""

import numpy as np
import pytest

from ftjax.data.rewards import (
    advantages,
    asked_of,
    reward_functions,
    sha256_of_functions,
    summed,
)

FILE = '''\
"""Rewards."""
def length(prompts, completions, **columns):
    return [len(text) for text in completions]
def some(prompts, completions, answer, **columns):
    answer.append("it is ours")
    return [1.0 if text == right else None for text, right in zip(completions, answer)]
def raises(prompts, completions, **columns):
    return 1 / 0
def too_few(prompts, completions, **columns):
    return [1.0]
def nothing(prompts, completions, **columns):
    return None
def no_number(prompts, completions, **columns):
    return [float("nan")] * len(completions)
def text(prompts, completions, **columns):
    return ["good"] * len(completions)
number = 3
'''


@pytest.fixture
def file(tmp_path):
    (tmp_path / "rewards.py").write_text(FILE)
    return tmp_path / "rewards.py"


def test_each_function_says_what_it_says(file):
    functions = reward_functions([f"{file}:length", f"{file}:some"])
    columns = {"answer": ["a", "b", "c"]}
    found = asked_of(functions, ["p"] * 3, ["a", "bb", "c"], columns)
    np.testing.assert_array_equal(found, [[1, 1], [2, np.nan], [1, 1]])
    # What a function does to a list stays with it.
    assert columns == {"answer": ["a", "b", "c"]}
    np.testing.assert_array_equal(summed(found, (1.0, 0.5)), [1.5, 2.0, 1.5])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"function raises of .*rewards\.py raised ZeroDivisionError: division by zero"),
        ("too_few", "too_few .* gave 1 rewards for 2 completions; one for each is needed"),
        ("nothing", "nothing .* gave 1 rewards for 2 completions"),
        ("no_number", "no_number .* gave nan for the completion 'a'; a finite number, or None"),
        ("text", "text .* gave 'good' for the completion 'a'"),
    ],
)
def test_functions_that_say_no_reward(file, name, message):
    functions = reward_functions([f"{file}:{name}"])
    with pytest.raises(ValueError, match=message):
        asked_of(functions, ["p", "p"], ["a", "b"], {})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("rewards", "must be a file and a function in it, such as"),
        ("{file}", "must be a file and a function in it"),
        ("{file}:missing", "has no function 'missing'"),
        ("{file}:number", "has no function 'number'"),
        ("nowhere.py:length", r"there is no file nowhere\.py"),
    ],
)
def test_references_to_nothing(file, reference, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        reward_functions([reference.format(file=file)])


def test_a_file_that_cannot_be_run(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match=r"broken\.py cannot be run \(ModuleNotFoundError"):
        reward_functions([f"{tmp_path}/broken.py:length"])


def test_what_they_are_is_known_by_their_files(file):
    before = sha256_of_functions(reward_functions([f"{file}:length"]))
    assert before == sha256_of_functions(reward_functions([f"{file}:some"]))
    file.write_text(FILE + "\n")
    assert before != sha256_of_functions(reward_functions([f"{file}:length"]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_differences_within_a_prompt(scale):
    rewards = np.random.default_rng(0).normal(size=(5, 4))
    found, deviations = advantages(rewards, scale)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)
    for group, row, deviation in zip(rewards, found, deviations, strict=True):
        mean = sum(group) / 4
        expected = (sum((r - mean) ** 2 for r in group) / 3) ** 0.5
        assert deviation == pytest.approx(expected)
        by = {"group": expected + 1e-4, "batch": rewards.std(ddof=1) + 1e-4, "none": 1.0}[scale]
        np.testing.assert_allclose(row, (group - mean) / by)


def test_equal_rewards_teach_nothing():
    found, deviations = advantages(np.full((2, 3), 0.7), "group")
    assert not found.any()
    assert not deviations.any()
