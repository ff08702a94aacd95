import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ftjax.evaluation.baselines import linear_head, majority, tfidf_logistic_regression
from ftjax.objectives import base
from ftjax.objectives.classification import Classification
from ftjax.runs.report import print_result
from ftjax.runs.result import Cost, Result

TEXTS = ["red apple tree", "green apple leaf", "fast red car", "slow green car"] * 6
LABELS = np.array([0, 0, 1, 1] * 6)


def test_majority():
    np.testing.assert_array_equal(majority(np.array([2, 0, 2]), 3), [2, 2, 2])


def test_tfidf_is_one_of_scikit_learns_by_hand():
    test = ["red apple", "green car", "unknown words"]
    data = ([(text,) for text in TEXTS], LABELS)
    found = tfidf_logistic_regression(data, data, [(text,) for text in test])
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(TEXTS)
    model = LogisticRegression(max_iter=2000).fit(vectorizer.transform(TEXTS), LABELS)
    np.testing.assert_array_equal(found[:2], model.predict(vectorizer.transform(test))[:2])
    np.testing.assert_array_equal(found[:2], [0, 1])


def test_tfidf_of_pairs_sees_what_they_share():
    words = ["red", "green", "blue", "white"]
    pairs = [(f"{a} apple", f"{b} car") for a in words for b in words] * 4
    labels = np.array([a.split()[0] == b.split()[0] for a, b in pairs])
    found = tfidf_logistic_regression((pairs, labels), (pairs, labels), pairs)
    np.testing.assert_array_equal(found, labels)


def test_the_regularisation_is_chosen_on_validation_not_on_test():
    random = np.random.default_rng(0)
    values = random.normal(size=(60, 30))
    labels = (values[:, 0] > 0).astype(int)
    first = linear_head((values[:30], labels[:30]), (values[30:], labels[30:]), values[30:])
    # Labels of the test examples are never given, so they cannot be used.
    assert (first == labels[30:]).mean() > 0.6


@pytest.mark.parametrize("signs", ["好坏", "😀😡", "ab"])
def test_texts_without_words_are_sorted_by_their_characters(signs):
    labels = np.arange(12) % 2
    texts = [(signs[label] * (1 + n),) for n, label in enumerate(labels)]
    found = tfidf_logistic_regression((texts, labels), (texts, labels), texts)
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("text", ["", "  ", "."])
def test_texts_without_anything_end_nothing(text):
    labels = np.arange(12) % 2
    texts = [(text,)] * 12
    assert len(tfidf_logistic_regression((texts, labels), (texts, labels), texts)) == 12


def test_of_many_examples_baselines_see_some(tiny_config, monkeypatch):
    monkeypatch.setattr(base, "BASELINE_EXAMPLES", {"train": 12, "validation": 6})
    objective = Classification(tiny_config, Path(tiny_config.model.reference))
    objective.read()
    rows = objective.baseline_rows()
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [12, 6, 14]
    few = objective.with_rows(rows)
    assert np.bincount(few.labels["train"]).tolist() == [4, 4, 4]
    some, whole = few.examples["train"], objective.examples["train"]
    np.testing.assert_array_equal(some.lengths, whole.lengths[rows["train"]])
    batch = some.batch(np.array([3, 5]), rows=4, length=8)
    of_all = whole.batch(rows["train"][[3, 5]], rows=4, length=8)
    assert batch["example_ids"].tolist() == [3, 5, -1, -1]
    assert of_all["example_ids"].tolist() == [*rows["train"][[3, 5]], -1, -1]
    for name in batch.keys() - {"example_ids"}:
        np.testing.assert_array_equal(batch[name], of_all[name])
    assert few.texts["train"][3] == objective.texts["train"][rows["train"][3]]
    assert batch["labels"][0] == few.labels["train"][3]


def test_the_table_says_how_many_baselines_saw():
    scores = {"test/accuracy": 0.9, "test/majority/accuracy": 0.5}
    scores |= {"test/tfidf_logistic_regression/accuracy": 0.7}
    cost = Cost(**dict.fromkeys(Cost.__dataclass_fields__, 1))
    details = {"baseline_examples": {"train": [10_000, 200_000]}}
    result = Result("many", "base", 0, "full", scores, 1, 1, 10, cost, details=details)
    out = io.StringIO()
    print_result(Console(file=out, width=200), result, "runs/many")
    assert "TF-IDF + logistic regression (on 10,000 of 200,000 training examples)" in out.getvalue()
    assert "majority answer " in out.getvalue()
