"""What generated texts are scored by: our choices around the libraries, and our own rules."""

import random
import re
from collections import Counter

import numpy as np
import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from ftjax.evaluation.intervals import interval_of_mean
from ftjax.evaluation.text_overlap import (
    ROUGE,
    best_lead,
    by_document,
    copied,
    lead,
    novel_ngrams,
    rouge_scores,
    sentences,
    text_metrics,
    unsupported_numbers,
)

VOCABULARY = ["the", "a", "cat", "cats", "running", "runs", "ran", "mats", "on", "sat", "dosage"]


def text(generator, longest=6):
    """A few sentences of few words, so that much overlaps; perhaps empty."""
    parts = []
    for _ in range(generator.randrange(5)):
        words = generator.choices(VOCABULARY, k=generator.randrange(1, longest))
        parts.append(" ".join(words) + generator.choice([".", "!", "?", "\n", ". \n", " and"]))
    return " ".join(parts)


def stems(sentence):
    """rouge_score's tokens: lower case, letters and digits, stems of what is longer than 3."""
    words = re.sub(r"[^a-z0-9]+", " ", sentence.lower()).split()
    return [PorterStemmer().stem(word) if len(word) > 3 else word for word in words]


def f1(hits, reference, prediction):
    if not hits or not reference or not prediction:
        return 0.0
    recall, precision = hits / reference, hits / prediction
    return 200 * recall * precision / (recall + precision)


def table(one, other):
    """Lengths of longest common subsequences of beginnings, [len + 1, len + 1]."""
    found = np.zeros((len(one) + 1, len(other) + 1), int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            same = found[i, j] + 1
            found[i + 1, j + 1] = same if a == b else max(found[i, j + 1], found[i + 1, j])
    return found


def subsequence(one, other):
    """Places in `one` of a longest common subsequence, found from the end."""
    found, i, j, places = table(one, other), len(one), len(other), []
    while i and j:
        if one[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif found[i, j - 1] > found[i - 1, j]:
            j -= 1
        else:
            i -= 1
    return places


def lsum(prediction, reference):
    """Union of subsequences by sentence (Lin 2004, 3.2), each word at most as often as it comes."""
    ours = [stems(sentence) for sentence in prediction]
    theirs = [stems(sentence) for sentence in reference]
    counts = [Counter(word for one in side for word in one) for side in (ours, theirs)]
    left, hits = [count.copy() for count in counts], 0
    for sentence in theirs:
        union = sorted({place for other in ours for place in subsequence(sentence, other)})
        for word in (sentence[place] for place in union):
            if left[0][word] > 0 and left[1][word] > 0:
                hits, left[0][word], left[1][word] = hits + 1, left[0][word] - 1, left[1][word] - 1
    return f1(hits, counts[1].total(), counts[0].total())


def test_rouge_is_the_formula_with_stems_and_a_line_for_each_sentence():
    generator = random.Random(0)
    pairs = [(text(generator), text(generator)) for _ in range(1000)]
    found = rouge_scores(*zip(*pairs, strict=True))
    assert set(found) == set(ROUGE)
    for index, (prediction, reference) in enumerate(pairs):
        ours, theirs = stems(prediction), stems(reference)
        for size in (1, 2):
            grams = [
                Counter(tuple(one[i : i + size]) for i in range(len(one) - size + 1))
                for one in (ours, theirs)
            ]
            expected = f1((grams[0] & grams[1]).total(), grams[1].total(), grams[0].total())
            assert found[f"rouge{size}"][index] == pytest.approx(expected, abs=1e-9)
        longest = f1(int(table(theirs, ours)[-1, -1]), len(theirs), len(ours))
        assert found["rougeL"][index] == pytest.approx(longest, abs=1e-9)
        expected = lsum(sentences(prediction), sentences(reference))
        assert found["rougeLsum"][index] == pytest.approx(expected, abs=1e-9)


def test_without_lines_or_stems_the_numbers_are_others():
    prediction, reference = "It was sat on. The cats ran.", "The cat ran. It was sat on."
    found = {name: values[0] for name, values in rouge_scores([prediction], [reference]).items()}
    assert found["rougeLsum"] == pytest.approx(100) and found["rougeL"] < 60
    plain = RougeScorer(["rouge1", "rougeLsum"]).score(reference, prediction)
    assert 100 * plain["rouge1"].fmeasure < found["rouge1"] == pytest.approx(100)
    assert 100 * plain["rougeLsum"].fmeasure < 60


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", []),
        ("\n \n", []),
        ("One. Two! Three?  Four", ["One.", "Two!", "Three?", "Four"]),
        ("A line\nanother line.\n\nLast: 2.5 mg.", ["A line", "another line.", "Last: 2.5 mg."]),
        ("e.g.this", ["e.g.this"]),
    ],
)
def test_sentences(given, expected):
    assert sentences(given) == expected


def brute_force_runs(words, known):
    """From the left, the longest beginning of what is left that stands somewhere in the source."""
    runs, left = [], words
    while left:
        sizes = [
            size
            for size in range(1, len(left) + 1)
            if any(known[at : at + size] == left[:size] for at in range(len(known) - size + 1))
        ]
        runs.append(max(sizes, default=0))
        left = left[max(runs[-1], 1) :]
    return runs


def test_copies_and_novel_ngrams_by_brute_force():
    generator = random.Random(1)
    for _ in range(1000):
        words = generator.choices(VOCABULARY[:6], k=generator.randrange(9))
        known = generator.choices(VOCABULARY[:6], k=generator.randrange(9))
        prediction, source = " ".join(words).upper(), ", ".join(known)
        runs = brute_force_runs(words, known)
        count = max(len(words), 1)
        expected = (sum(runs) / count, sum(run * run for run in runs) / count)
        assert copied(prediction, source) == pytest.approx(expected, abs=1e-12)
        for size in (1, 2, 3):
            grams = [words[i : i + size] for i in range(len(words) - size + 1)]
            have = [known[i : i + size] for i in range(len(known) - size + 1)]
            novel = sum(gram not in have for gram in grams) / max(len(grams), 1)
            assert novel_ngrams(prediction, source, size) == pytest.approx(novel, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "source", "expected"),
    [
        ("Take 25 mg.", "Take 20 mg.", ["25"]),
        ("Take 25 mg and 25 ml.", "", ["25"]),
        ("Take 2.50 mg at 8.", "two point five milligrams at eight", []),
        ("A 62-year-old woman.", "I'm sixty two years old.", []),
        ("A forty six-year-old man.", "46", []),
        ("BP 120/80 in 1999.", "one twenty over eighty, in nineteen ninety nine", []),
        ("1,200 ml", "one thousand two hundred", []),
        ("1200", "1,20", ["1200"]),
        ("3.5", "3 5", ["3.5"]),
        ("on the 21st", "the twenty-first", []),
        ("on the 21st", "the twentieth", ["21"]),
        ("One of them came first, the third too; 1 tablet.", "", []),
        ("two tablets, 0 left", "", ["2", "0"]),
        ("12", "1, 2", ["12"]),
        ("no number", "7", []),
        ("08/27/03", "August 27th, 03", []),
        ("09/27", "Aug. 27", ["9"]),
        ("3 packs", "married", ["3"]),
        ("1. Asthma.  2. Gout. 3) Pain", "", []),
        ("It began in 2. He takes 2.", "", ["2"]),
        ("", "", []),
    ],
)
def test_numbers_that_nobody_said(prediction, source, expected):
    assert unsupported_numbers(prediction, source) == expected


def test_whole_splits():
    sources = ["The cat sat on mat 7. It ran. Then nothing.", "Cats sat. Dogs ran."]
    references = ["The cat sat on mat 7.", "Cats sat."]
    assert best_lead(sources, references) == 1
    predictions = [lead(source, 1) for source in sources]
    assert predictions == references
    metrics = text_metrics(predictions, references, sources)
    assert {metrics[name] for name in (*ROUGE, "chrf")} == {100.0}
    assert metrics["copy_rate"] == 1 and metrics["copy_density"] == pytest.approx((6 + 2) / 2)
    assert metrics["with_unsupported_numbers"] == 0
    wrong = text_metrics(["The cat sat on mat 8 or 9", ""], references, sources)
    assert wrong["unsupported_numbers"] == 1 and wrong["with_unsupported_numbers"] == 0.5
    found = by_document(["The cat sat on mat 8 or 9", ""], references, sources)
    assert found["words"].tolist() == [8, 0] and found["rouge1"][1] == 0
    assert wrong["rouge1"] == pytest.approx(found["rouge1"].mean())


def test_an_interval_holds_the_mean():
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = interval_of_mean(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval_of_mean(np.ones(3)) == (1.0, 1.0)
