"""What fine-tuning has to beat: answers that need no network, or leave it frozen."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftjax.progress import track

TFIDF_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
FEATURE_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation strengths to choose from, on validation data."""

FITTING = "fitting a baseline"
SCORED = ("validation", "test")
CERTAIN = 30.0
"""The logit of what all training examples have in common."""

Features = Any


def majority(train_labels: np.ndarray, count: int) -> np.ndarray:
    """The most frequent training label, `count` times."""
    return np.full(count, np.bincount(train_labels).argmax())


def most_frequent_tags(
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
) -> dict[str, str]:
    """The tag that each word has most often, the first in the alphabet of several.

    Args:
        sentences: words and their tags.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    for words, tags in sentences:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    return {word: max(sorted(found), key=found.__getitem__) for word, found in counts.items()}


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
    features = tfidf_features(train[0])
    return _best_of(
        [LogisticRegression(C=c, max_iter=2000) for c in TFIDF_STRENGTHS],
        (features(train[0]), train[1]),
        (features(validation[0]), validation[1]),
    ).predict(features(test_texts))


def tfidf_features(
    train_texts: Sequence[tuple[str, ...]],
) -> Callable[[Sequence[tuple[str, ...]]], Any]:
    """A function that gives examples' TF-IDF features, a sparse matrix [examples, features].

    Args:
        train_texts: examples that say which words there are.
    """
    vectorizer = _fit_vectorizer([text for texts in train_texts for text in texts])

    def features(examples: Sequence[tuple[str, ...]]) -> Any:
        columns = list(zip(*examples, strict=True))
        parts = [vectorizer.transform(track(column, "counting words")) for column in columns]
        if len(parts) == 1:
            return parts[0]
        shared = parts[0].multiply(parts[1])
        return sparse.csr_matrix(sparse.hstack([shared, shared.sum(axis=1)]))

    return features


def nearest_neighbours(
    train: tuple[np.ndarray, np.ndarray], test: np.ndarray, classes: int, *, count: int = 20
) -> np.ndarray:
    """Classes of the nearest features, each neighbour's vote exp(cosine / 0.07).

    (Caron et al. 2021, DINO, 2104.14294, appendix F.1, after Wu et al. 2018.)

    Args:
        train: features [examples, hidden] and labels int [examples].
        test: features [examples, hidden].
        classes: how many there are.
        count: of neighbours, at most all.
    """
    (features, labels), votes = train, np.zeros((len(test), classes))
    features, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, test))
    for row, similar in enumerate(track(test @ features.T, "looking for neighbours")):
        nearest = np.argsort(-similar, kind="stable")[:count]
        np.add.at(votes[row], labels[nearest], np.exp((similar[nearest] - 1) / 0.07))
    return votes.argmax(-1)


def _fit_vectorizer(texts: list[str]) -> TfidfVectorizer:
    """Of words and word pairs; of characters where no word stands in two texts.

    So it is with scripts that put no spaces between words, with emoji and with single letters.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    try:
        return words.fit(track(texts, "counting words"))
    except ValueError:
        # Of what is no word to scikit-learn, every character counts, and one text is enough.
        characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        return characters.fit(texts if any(texts) else ["nothing to see"])


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


def one_vs_rest(
    features: Mapping[str, Features], labels: Mapping[str, np.ndarray], *, sparse_features: bool
) -> dict[str, np.ndarray]:
    """Logistic regression for each of several labels; logits [examples, labels] by split.

    Args:
        features: of "train", "validation" (which chooses the regularisation) and "test".
        labels: of the first two, int [examples, labels], zeros and ones.
        sparse_features: whether they are TF-IDF, or a network's, which are put to one scale.
    """

    def fitted(strength: float) -> dict[str, np.ndarray]:
        found = {name: np.zeros((features[name].shape[0], count)) for name in SCORED}
        for label in range(count):
            here = labels["train"][:, label]
            if here.min() == here.max():
                for logits in found.values():
                    logits[:, label] = CERTAIN if here[0] else -CERTAIN
                continue
            model = _linear(LogisticRegression(C=strength, max_iter=2000), sparse_features)
            model.fit(features["train"], here)
            for name, logits in found.items():
                logits[:, label] = model.decision_function(features[name])
        return found

    def score(found: dict[str, np.ndarray]) -> float:
        truth = labels["validation"]
        having = np.flatnonzero(truth.any(0))
        logits = found["validation"]
        each = [average_precision_score(truth[:, k], logits[:, k]) for k in having]
        return float(np.mean(each)) if each else 0.0

    count = labels["train"].shape[1]
    strengths = TFIDF_STRENGTHS if sparse_features else FEATURE_STRENGTHS
    return max(map(fitted, track(strengths, FITTING)), key=score)


def ridge(
    features: Mapping[str, Features], targets: Mapping[str, np.ndarray], *, sparse_features: bool
) -> np.ndarray:
    """Ridge regression; values [test examples].

    Args:
        features: as of `one_vs_rest`.
        targets: of "train" and "validation", float [examples].
        sparse_features: as of `one_vs_rest`.
    """
    strengths = TFIDF_STRENGTHS if sparse_features else FEATURE_STRENGTHS
    models = [
        _linear(Ridge(alpha=1.0 / strength), sparse_features).fit(
            features["train"], targets["train"]
        )
        for strength in track(strengths, FITTING)
    ]

    def error(model) -> float:
        return float(np.mean((model.predict(features["validation"]) - targets["validation"]) ** 2))

    return min(models, key=error).predict(features["test"])


def _linear(model, sparse_features: bool):
    return model if sparse_features else make_pipeline(StandardScaler(), model)


def _best_of(candidates: list, train: tuple, validation: tuple):
    fitted = [candidate.fit(*train) for candidate in track(candidates, FITTING)]
    features, labels = validation
    return max(fitted, key=lambda c: f1_score(labels, c.predict(features), average="macro"))
