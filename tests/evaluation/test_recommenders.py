"""Recommenders that know no text, against their papers' problems solved in another way."""

import numpy as np
import pytest

from ftjax.evaluation import recommenders
from ftjax.evaluation.recommenders import (
    GRIDS,
    baseline_scores,
    ease,
    item_knn,
    likes_matrix,
    popular,
)


@pytest.fixture
def likes():
    random = np.random.default_rng(0)
    return likes_matrix([np.flatnonzero(random.random(12) < 0.4) for _ in range(40)], 12)


def test_ease_is_ridge_regression_of_each_item_on_the_others(likes):
    dense, found = likes.toarray(), ease(likes, regularization=3.0)
    assert not found.diagonal().any()
    for item in range(dense.shape[1]):
        others = np.delete(dense, item, axis=1)
        gram = others.T @ others + 3.0 * np.eye(others.shape[1])
        expected = np.linalg.solve(gram, others.T @ dense[:, item])
        np.testing.assert_allclose(np.delete(found[:, item], item), expected, atol=1e-10)


@pytest.mark.parametrize(("neighbours", "shrink"), [(3, 0.0), (5, 10.0), (99, 1.0)])
def test_item_knn_keeps_the_nearest_of_each_item(likes, neighbours, shrink):
    dense = likes.toarray()
    found = item_knn(likes, neighbours=neighbours, shrink=shrink)
    for item in range(dense.shape[1]):
        own = dense[:, item]
        norms = np.linalg.norm(dense, axis=0) * np.linalg.norm(own)
        similar = dense.T @ own / (norms + shrink + 1e-6)
        similar[item] = 0
        kept = np.argsort(-similar, kind="stable")[:neighbours]
        expected = np.zeros(len(similar))
        expected[kept] = similar[kept]
        np.testing.assert_allclose(found[:, item], expected, atol=1e-12)


def test_popular_counts(likes):
    np.testing.assert_array_equal(popular(likes)[0], likes.toarray().sum(0))


def test_settings_are_chosen_on_validation_alone(likes, monkeypatch):
    histories = {"validation": likes[:5], "test": likes[5:12]}
    seen = []

    def choose(scores):
        seen.append(scores.of(slice(None)))
        return float(len(seen) in (3, 10))

    scores, chosen = baseline_scores(likes, histories, choose)
    assert chosen == {"itemknn": GRIDS["itemknn"][1][2], "ease": GRIDS["ease"][1][1]}
    assert all(found.shape == (5, 12) for found in seen)
    for name, found in scores.items():
        assert found.of(slice(0, 7)).shape == (7, 12), name
    expected = likes[5:12] @ ease(likes, **chosen["ease"])
    np.testing.assert_array_equal(scores["ease"].of(slice(None)), expected)
    monkeypatch.setattr(recommenders, "MOST_ITEMS", 11)
    assert list(baseline_scores(likes, histories, choose)[0]) == ["pop"]
