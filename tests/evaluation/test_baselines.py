import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ftjax.evaluation.baselines import linear_head, majority, tfidf_logistic_regression

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
