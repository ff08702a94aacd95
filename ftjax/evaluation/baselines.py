"""What fine-tuning has to beat: answers that need no network, or leave it frozen."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TFIDF_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
FEATURE_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation strengths to choose from, on validation data by macro-F1."""


def majority(train_labels: np.ndarray, count: int) -> np.ndarray:
    """The most frequent training label, `count` times."""
    return np.full(count, np.bincount(train_labels).argmax())


def tfidf_logistic_regression(
    train: tuple[Sequence[tuple[str, ...]], np.ndarray],
    validation: tuple[Sequence[tuple[str, ...]], np.ndarray],
    test_texts: Sequence[tuple[str, ...]],
) -> np.ndarray:
    """Logistic regression on TF-IDF of words and word pairs; predictions [test examples].

    Of an example with two texts it sees the words they share, each and in sum (their cosine): what
    each of them says by itself is many more features, and drowned these.

    Args:
        train: examples, each a tuple of its one or two texts, and labels.
        validation: the same, to choose the regularisation.
        test_texts: to be sorted.
    """
    vectorizer = _fit_vectorizer([text for texts in train[0] for text in texts])

    def features(examples: Sequence[tuple[str, ...]]) -> sparse.spmatrix:
        parts = [vectorizer.transform(column) for column in zip(*examples, strict=True)]
        if len(parts) == 1:
            return parts[0]
        shared = parts[0].multiply(parts[1])
        return sparse.hstack([shared, shared.sum(axis=1)], format="csr")

    return _best_of(
        [LogisticRegression(C=c, max_iter=2000) for c in TFIDF_STRENGTHS],
        (features(train[0]), train[1]),
        (features(validation[0]), validation[1]),
    ).predict(features(test_texts))


def _fit_vectorizer(texts: list[str]) -> TfidfVectorizer:
    """Of words and word pairs; of characters where no word stands in two texts.

    So it is with scripts that put no spaces between words, with emoji and with single letters.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    try:
        return words.fit(texts)
    except ValueError:
        # Of what is no word to scikit-learn, every character counts, and one text is enough.
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True).fit(texts)


def linear_head(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test_features: np.ndarray,
) -> np.ndarray:
    """Logistic regression on a frozen network's features; predictions [test examples].

    Args:
        train: features [examples, hidden] and labels.
        validation: the same, to choose the regularisation.
        test_features: [examples, hidden].
    """
    candidates = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        for c in FEATURE_STRENGTHS
    ]
    return _best_of(candidates, train, validation).predict(test_features)


def _best_of(candidates: list, train: tuple, validation: tuple):
    fitted = [candidate.fit(*train) for candidate in candidates]
    features, labels = validation
    return max(fitted, key=lambda c: f1_score(labels, c.predict(features), average="macro"))
