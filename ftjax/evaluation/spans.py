"""Answers against right ones, by the rules of SQuAD's official script (evaluate-v2.0.py).

(Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822; scores are percentages.)
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ftjax.evaluation.intervals import Interval, interval_of_mean

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


def normalised(text: str) -> str:
    """Small letters, without ASCII punctuation, articles and more than one space at a time."""
    text = text.lower().translate(WITHOUT_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(right: Sequence[str], said: str) -> float:
    """1 if an answer reads as one of the right ones, else 0.

    Args:
        right: answers; none, or none of which anything is left, for the null answer.
        said: the answer; empty for the null answer.
    """
    return max(float(normalised(one) == normalised(said)) for one in _golds(right))


def f1(right: Sequence[str], said: str) -> float:
    """Harmonic mean of the precision and recall of words, with the right answer that fits best.

    Args:
        right: as of `exact_match`.
        said: the same.
    """
    return max(_f1(normalised(one).split(), normalised(said).split()) for one in _golds(right))


def span_metrics(right: Sequence[Sequence[str]], said: Sequence[str]) -> dict[str, float]:
    """Means over questions, from 0 to 100.

    Args:
        right: the right answers of each question, none for the null answer.
        said: the answer to each, empty for the null answer.

    Returns:
        `exact_match` and `f1`; where some questions have the null answer, also `HasAns_exact`,
        `HasAns_f1`, `NoAns_exact` and `NoAns_f1` of those with and without another, as far as there
        are both.
    """
    exact = np.asarray([exact_match(*pair) for pair in zip(right, said, strict=True)])
    overlap = np.asarray([f1(*pair) for pair in zip(right, said, strict=True)])
    found = {"exact_match": 100 * exact.mean(), "f1": 100 * overlap.mean()}
    has = np.asarray([bool(answers) for answers in right])
    if not has.all():
        for name, part in (("HasAns", has), ("NoAns", ~has)):
            if part.any():
                found[f"{name}_exact"] = 100 * exact[part].mean()
                found[f"{name}_f1"] = 100 * overlap[part].mean()
    return {name: float(value) for name, value in found.items()}


def span_intervals(right: Sequence[Sequence[str]], said: Sequence[str]) -> dict[str, Interval]:
    """95 % intervals of `exact_match` and `f1`, over the questions; see `span_metrics`."""
    pairs = list(zip(right, said, strict=True))
    return {
        "exact_match": interval_of_mean(np.asarray([100 * exact_match(*pair) for pair in pairs])),
        "f1": interval_of_mean(np.asarray([100 * f1(*pair) for pair in pairs])),
    }


def best_threshold(
    right: Sequence[Sequence[str]], said: Sequence[str], differences: Sequence[float], score: str
) -> float:
    """The difference above which the null answer is given, so that the mean score is highest.

    (`find_best_thresh` of the official script, but that equal differences go together and that the
    null answer to a question with others scores what it scores.)

    Args:
        right: as of `span_metrics`.
        said: the best answer to each question that is not the null answer; empty if there is none.
        differences: of the null answer's score and that one's.
        score: "exact_match" or "f1".

    Returns:
        One of the differences, or less than all of them; the smallest of equally good ones. 0 (that
        of run_qa) where all questions have the null answer, or none has.
    """
    has = np.asarray([bool(answers) for answers in right])
    if has.all() or not has.any():
        return 0.0
    one = exact_match if score == "exact_match" else f1
    gains = [
        one(answers, text) - one(answers, "") for answers, text in zip(right, said, strict=True)
    ]
    values = np.asarray(differences, np.float64)
    order = np.argsort(values, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(np.asarray(gains)[order])])
    values = np.concatenate([[values.min() - 1.0], values[order]])
    last_of_equals = np.append(values[1:] != values[:-1], True)
    # What rounding tells apart is equally good.
    totals = np.where(last_of_equals, totals.round(9), -np.inf)
    return float(values[np.argmax(totals)])


def overlapping_sentence(question: str, context: str) -> str:
    """The sentence that has most words of the question, the first of several."""
    words = set(normalised(question).split())
    sentences = [match[0].strip() for match in SENTENCE.finditer(context)] or [context]
    return max(sentences, key=lambda text: len(words & set(normalised(text).split())))


def _golds(right: Sequence[str]) -> list[str]:
    return [one for one in right if normalised(one)] or [""]


def _f1(right: list[str], said: list[str]) -> float:
    if not right or not said:
        return float(right == said)
    same = sum((Counter(right) & Counter(said)).values())
    return 2 * same / (len(right) + len(said))
