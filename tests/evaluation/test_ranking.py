"""Metrics of rankings: RecBole's formulas in loops, over every order of what scores alike."""

import itertools
import math

import numpy as np
import pytest
from scipy import sparse

from ftjax.evaluation.ranking import (
    DEPTH,
    USER_METRICS,
    Audience,
    Scores,
    all_metrics,
    catalogue_metrics,
    recommended,
    user_metrics,
)


def of_order(order, relevant):
    """Of one user's candidates in one order, as RecBole writes them."""
    hits = [item in relevant for item in order[:DEPTH]]
    best = sum(1 / math.log2(place + 2) for place in range(min(len(relevant), DEPTH)))
    first = next((place for place, hit in enumerate(hits) if hit), None)
    precisions = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
    return {
        "recall@10": sum(hits) / len(relevant),
        "ndcg@10": sum(hit / math.log2(place + 2) for place, hit in enumerate(hits)) / best,
        "mrr@10": 0 if first is None else 1 / (first + 1),
        "hit@10": float(any(hits)),
        "precision@10": sum(hits) / DEPTH,
        "map@10": sum(precisions) / min(len(relevant), DEPTH),
    }


def over_all_orders(scores, relevant, known):
    """The mean over the orders of candidates that agree with the scores."""
    candidates = [item for item in range(len(scores)) if item not in known]
    groups = itertools.groupby(sorted(candidates, key=lambda i: -scores[i]), lambda i: scores[i])
    orders = itertools.product(*(itertools.permutations(group) for _, group in groups))
    found = [of_order([i for part in order for i in part], relevant) for order in orders]
    return {name: np.mean([one[name] for one in found]) for name in USER_METRICS}


def matrix(sets, items):
    rows = np.zeros((len(sets), items))
    for row, chosen in zip(rows, sets, strict=True):
        row[list(chosen)] = 1
    return sparse.csr_matrix(rows)


def scores_of(values):
    return Scores(values, np.eye(values.shape[1]))


@pytest.mark.parametrize("levels", [1, 2, 4, 100])
def test_every_order_of_what_scores_alike_counts_alike(levels):
    random, items = np.random.default_rng(levels), 7
    for _ in range(20):
        users = 3
        values = random.integers(0, levels, (users, items)).astype(float)
        drawn = [random.permutation(items) for _ in range(users)]
        counts = random.integers(1, 4, users)
        relevant = [set(d[:n].tolist()) for d, n in zip(drawn, counts, strict=True)]
        known = [set(d[n : n + 2].tolist()) for d, n in zip(drawn, counts, strict=True)]
        audience = Audience(matrix(known, items), matrix(relevant, items))
        found = user_metrics(scores_of(values), audience)
        for user in range(users):
            expected = over_all_orders(values[user], relevant[user], known[user])
            for name, value in expected.items():
                assert found[name][user] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("users", [1, 256, 257, 600])
def test_many_users_and_deep_catalogues(users):
    """Beyond the depth, and beyond the users that are held at once."""
    random, items = np.random.default_rng(users), 60
    values = random.normal(size=(users, items))
    drawn = [random.permutation(items) for _ in range(users)]
    counts = random.integers(1, 25, users)
    relevant = [set(d[:n].tolist()) for d, n in zip(drawn, counts, strict=True)]
    known = [set(d[n : n + 20].tolist()) for d, n in zip(drawn, counts, strict=True)]
    audience = Audience(matrix(known, items), matrix(relevant, items))
    found = user_metrics(scores_of(values), audience)
    for user in range(users):
        order = [i for i in np.argsort(-values[user]) if i not in known[user]]
        for name, value in of_order(order, relevant[user]).items():
            assert found[name][user] == pytest.approx(value, abs=1e-12), name
            assert 0 <= found[name][user] <= 1


def test_who_says_nothing_has_the_value_of_chance():
    random, items = np.random.default_rng(0), 40
    relevant = [set(random.permutation(items)[: 1 + n % 5].tolist()) for n in range(50)]
    audience = Audience(matrix([()] * 50, items), matrix(relevant, items))
    found = user_metrics(scores_of(np.zeros((50, items))), audience)
    np.testing.assert_allclose(found["recall@10"], DEPTH / items)
    shares = np.array([len(one) for one in relevant]) / items
    np.testing.assert_allclose(found["precision@10"], shares)
    none = [math.comb(items - len(one), DEPTH) / math.comb(items, DEPTH) for one in relevant]
    np.testing.assert_allclose(found["hit@10"], 1 - np.array(none))


def test_other_numbers_of_items_change_nothing():
    random, items = np.random.default_rng(1), 30
    values = random.integers(0, 5, (8, items)).astype(float)
    relevant = matrix([random.permutation(items)[:4] for _ in range(8)], items)
    known = relevant[::-1] > relevant
    audience = Audience(sparse.csr_matrix(known), relevant)
    popularity = random.integers(0, 9, items)
    first = user_metrics(scores_of(values), audience)
    order = random.permutation(items)
    moved = Audience(audience.known[:, order], audience.liked[:, order])
    second = user_metrics(scores_of(values[:, order]), moved)
    for name in USER_METRICS:
        np.testing.assert_allclose(first[name], second[name], atol=1e-12)
    both = all_metrics(scores_of(values), audience, popularity)
    assert both["recall@10"] == pytest.approx(first["recall@10"].mean())


def test_of_all_recommendations():
    """Coverage, mean popularity and RecBole's Gini index, written out."""
    shown, popularity = np.array([[0, 1, 2], [0, 1, 3], [0, 4, -1]]), np.arange(6) * 10
    found = catalogue_metrics(shown, popularity)
    assert found["itemcoverage@10"] == pytest.approx(5 / 6)
    assert found["averagepopularity@10"] == pytest.approx(((0 + 10 + 20) + (0 + 10 + 30) + 40) / 9)
    # Shown 0, 1, 1, 1, 2 and 3 times, of 8: half the mean difference of all pairs by the mean.
    counts = np.array([0, 1, 1, 1, 2, 3])
    apart = np.abs(counts[:, None] - counts[None, :]).sum()
    assert found["giniindex@10"] == pytest.approx(apart / (2 * 6 * counts.sum()))


def test_nothing_known_is_recommended():
    known = np.array([[True, False, True, False], [True, True, True, False]])
    values = np.array([[9.0, 1, 8, 2], [9.0, 8, 7, 1]])
    assert recommended(values, known, 3).tolist() == [[3, 1, -1], [3, -1, -1]]


def test_some_items_for_those_who_like_one():
    audience = Audience(matrix([{0}, {1}, {3}], 4), matrix([{1, 2}, {0}, {2}], 4))
    fewer, users = audience.only(np.array([False, False, True, True]))
    assert users.tolist() == [True, False, True]
    assert fewer.liked.toarray().tolist() == [[1, 0], [1, 0]]
    assert fewer.known.toarray().tolist() == [[0, 0], [0, 1]]
