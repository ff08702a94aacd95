"""Reward functions of a user, asked what completions are worth, and what follows from it."""

import hashlib
import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Of a standard deviation, so that a group without one divides by something; TRL's.
GUARD = 1e-4
SCALES = ("group", "batch", "none")


class RewardFunction(NamedTuple):
    """A function of a user.

    Attributes:
        name: of it.
        file: that it stands in.
        function: `(prompts, completions, **columns) -> list of numbers`, as TRL calls it; None
            where it says nothing of a completion.
    """

    name: str
    file: Path
    function: Callable[..., Sequence[float | None]]


def reward_functions(references: Sequence[str]) -> list[RewardFunction]:
    """The functions of `file.py:name` each; the files are run.

    Raises:
        ValueError: what is no such reference, or a function that is not there.
        FileNotFoundError: no such file.
    """
    return [_loaded(reference) for reference in references]


def sha256_of_functions(functions: Sequence[RewardFunction]) -> str:
    """Of their files' content, one behind the other."""
    digest = hashlib.sha256()
    for function in functions:
        digest.update(function.file.read_bytes())
    return digest.hexdigest()


def _loaded(reference: str) -> RewardFunction:
    match = re.fullmatch(r"(.+\.py):(\w+)", reference)
    if match is None:
        raise ValueError(
            f"config.objective.reward_funcs: {reference!r} must be a file and a function in it, "
            "such as 'experiments/rewards.py:is_right'."
        )
    file, name = Path(match[1]), match[2]
    if not file.is_file():
        raise FileNotFoundError(f"config.objective.reward_funcs: there is no file {file}.")
    spec = importlib.util.spec_from_file_location(f"rewards_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"{file} cannot be run ({type(error).__name__}: {error}); config.objective."
            "reward_funcs names it."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(
            f"{file} has no function {name!r}; config.objective.reward_funcs names it."
        )
    found: Any = function
    return RewardFunction(name, file, found)


def asked_of(
    functions: Sequence[RewardFunction],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
    """What each function says of each completion, float64 [completions, functions].

    NaN stands where it says nothing.

    Raises:
        ValueError: a function that raises, gives another number of rewards, or one that is none;
            names function and completion.
    """
    return np.stack(
        [_asked(function, prompts, completions, columns) for function in functions], axis=1
    )


def _asked(
    one: RewardFunction,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
    told = f"The reward function {one.name} of {one.file}"
    # Lists of its own, so that what it does to them stays with it.
    given = {name: list(values) for name, values in columns.items()}
    try:
        found = one.function(prompts=list(prompts), completions=list(completions), **given)
    except Exception as error:
        raise ValueError(f"{told} raised {type(error).__name__}: {error}") from error
    found = [None] if found is None else list(found)
    if len(found) != len(completions):
        raise ValueError(
            f"{told} gave {len(found)} rewards for {len(completions)} completions; one for each is "
            "needed, None where it says nothing."
        )
    return np.asarray([_number(value, told, completions[n]) for n, value in enumerate(found)])


def _number(value: Any, told: str, completion: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{told} gave {value!r:.60} for the completion {completion!r:.200}; a finite number, "
            "or None, is needed."
        )
    return number


def summed(rewards: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The weighted sum of what functions say, float64 [completions]; what says nothing adds 0.

    Args:
        rewards: [completions, functions], NaN for nothing.
        weights: of the functions.
    """
    return np.nansum(rewards * np.asarray(weights, np.float64), axis=1)


def advantages(rewards: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """How much better a completion is than its prompt's others, and their standard deviation.

    As TRL has it: the deviation is that of a sample (n - 1).

    Args:
        rewards: float64 [prompts, completions].
        scale: what the difference from the prompt's mean is divided by: the standard deviation of
            its "group" or of the whole "batch", or by "none" (Liu et al. 2025, 2503.20783).

    Returns:
        [prompts, completions] and [prompts].
    """
    # The mean of equal numbers may be another one, in its last bit.
    alike = np.ptp(rewards, axis=1) == 0
    apart = np.where(alike[:, None], 0.0, rewards - rewards.mean(1, keepdims=True))
    deviations = np.where(alike, 0.0, rewards.std(1, ddof=1))
    if scale == "group":
        return apart / (deviations[:, None] + GUARD), deviations
    if scale == "batch":
        return apart / (rewards.std(ddof=1) + GUARD), deviations
    return apart, deviations
