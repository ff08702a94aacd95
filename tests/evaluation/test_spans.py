"""Scores of answers against the published rules of SQuAD's official script, written out slowly."""

import random

import numpy as np
import pytest

from ftjax.evaluation.spans import (
    best_threshold,
    exact_match,
    f1,
    normalised,
    overlapping_sentence,
    span_metrics,
)

# Of what answers are made here: articles, punctuation, case, accents, several spaces, nothing.
PIECES = [
    "the",
    "The",
    "a",
    "an",
    "cat",
    "Cat,",
    "mat.",
    "...",
    "U.S.",
    "don't",
    "Ärger",
    "the-end",
]
PIECES += ["thesis", "12,000", "an  ", "\t", "–", "$5"]
CASES = 1000


def official_words(text):
    """Lower case; no ASCII punctuation; no words a, an, the; divided at white space."""
    kept = ""
    for letter in text.lower():
        if letter not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~":
            kept += letter
    # An article is one where letters, digits and underscores end.
    words, word = [], ""
    for letter in kept + " ":
        if letter.isalnum() or letter == "_":
            word += letter
        else:
            words.append("" if word in ("a", "an", "the") else word)
            words.append(letter)
            word = ""
    return "".join(words).split()


def official_scores(right, said):
    golds = [gold for gold in right if official_words(gold)] or [""]
    exact, overlap = [], []
    for gold in golds:
        expected, found = official_words(gold), official_words(said)
        exact.append(int(expected == found))
        if not expected or not found:
            overlap.append(int(expected == found))
            continue
        left, same = list(expected), 0
        for word in found:
            if word in left:
                left.remove(word)
                same += 1
        if same == 0:
            overlap.append(0)
            continue
        precision, recall = same / len(found), same / len(expected)
        overlap.append(2 * precision * recall / (precision + recall))
    return max(exact), max(overlap)


def a_text(generator, most=5):
    return " ".join(generator.choices(PIECES, k=generator.randrange(most)))


@pytest.fixture(scope="module")
def cases():
    generator = random.Random(0)
    right, said = [], []
    for _ in range(CASES):
        golds = [text for _ in range(generator.randrange(4)) if (text := a_text(generator))]
        right.append(golds)
        # Often near one of the right ones.
        near = generator.choice(golds) if golds and generator.random() < 0.5 else ""
        said.append(f"{near} {a_text(generator, 3)}" if generator.random() < 0.8 else "")
    return right, said


def test_each_answer_as_the_official_script_scores_it(cases):
    seen = set()
    for right, said in zip(*cases, strict=True):
        expected = official_scores(right, said)
        found = (exact_match(right, said), f1(right, said))
        assert found == pytest.approx(expected, abs=1e-12), (right, said)
        seen.add((expected[0], 0 < expected[1] < 1))
    # Right ones, wrong ones, and those between.
    assert seen == {(0, False), (0, True), (1, False)}


def test_means_of_all_and_of_both_parts(cases):
    right, said = cases
    found = span_metrics(right, said)
    scores = [official_scores(*pair) for pair in zip(right, said, strict=True)]
    parts = {"HasAns": [bool(r) for r in right], "NoAns": [not r for r in right]}
    expected = dict(zip(("exact_match", "f1"), 100 * np.mean(scores, axis=0), strict=True))
    for name, chosen in parts.items():
        means = 100 * np.mean([s for s, one in zip(scores, chosen, strict=True) if one], axis=0)
        expected |= dict(zip((f"{name}_exact", f"{name}_f1"), means, strict=True))
    assert found == pytest.approx(expected, abs=1e-9)
    answered = [index for index, one in enumerate(right) if one]
    assert set(span_metrics([right[i] for i in answered], [said[i] for i in answered])) == {
        "exact_match",
        "f1",
    }


@pytest.mark.parametrize("score", ["exact_match", "f1"])
@pytest.mark.parametrize("equal", [False, True])
def test_the_threshold_is_the_best_there_is(cases, score, equal):
    """Every threshold that makes a difference is tried."""
    generator, which = random.Random(1), ("exact_match", "f1").index(score)
    for start in range(0, CASES, 50):
        right, said = (part[start : start + 50] for part in cases)
        differences = np.array([generator.gauss(0, 1) for _ in right])
        if equal:
            differences = differences.round()
        given = [official_scores(*pair)[which] for pair in zip(right, said, strict=True)]
        null = [official_scores(golds, "")[which] for golds in right]
        means = {
            threshold: np.mean(np.where(differences > threshold, null, given))
            for threshold in [differences.min() - 1, *differences]
        }
        found = best_threshold(right, said, differences, score)
        assert means[found] == pytest.approx(max(means.values()), abs=1e-12)


def test_the_threshold_where_there_is_nothing_to_choose():
    assert best_threshold([["a cat"]], ["cat"], [3.0], "f1") == 0
    assert best_threshold([[], []], ["cat", ""], [3.0, 1.0], "f1") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's\tmat.", "cats mat"),
        ("theatre an apple", "theatre apple"),
        ("a the an", ""),
        ("¿Qué?", "¿qué"),
        ("", ""),
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


def test_an_article_may_be_all_that_is_said():
    """With nothing left of the right answer, the official script counts the null answer."""
    assert exact_match(["The"], "") == 1
    assert f1(["The"], "cat") == 0


def test_the_sentence_with_most_words_of_the_question():
    context = "It rained. The cat sat on a mat! Who knows\nThe dog saw the cat."
    assert overlapping_sentence("Where sat the cat?", context) == "The cat sat on a mat!"
    assert overlapping_sentence("Why?", context) == "It rained."
    assert overlapping_sentence("Why?", "...") == "..."
