"""Recommenders that a network has to beat; they know items by number and read no text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ftjax.evaluation.ranking import Scores

# Catalogues beyond this have no dense matrix of items by items in memory.
MOST_ITEMS = 20_000

Likes = Any
"""A sparse matrix [users, items] of ones."""


def popular(likes: Likes) -> np.ndarray:
    """How often each item is liked, float64 [1, items]: the same for everybody."""
    return np.asarray(likes.sum(0), np.float64)


def item_knn(likes: Likes, *, neighbours: int, shrink: float) -> np.ndarray:
    """What each item says of the others, float64 [items, items]: cosines of its nearest ones.

    (Sarwar et al. 2001, Item-based Collaborative Filtering Recommendation Algorithms.) As RecBole's
    ItemKNN: the nearest are kept of each item that is recommended.

    Args:
        likes: of the training split.
        neighbours: how many are kept.
        shrink: added to the denominator, against chance among few likes.
    """
    together = np.asarray((likes.T @ likes).todense(), np.float64)
    norms = np.sqrt(np.diag(together))
    similar = together / (np.outer(norms, norms) + shrink + 1e-6)
    np.fill_diagonal(similar, 0.0)
    kept = min(neighbours, len(similar))
    nearest = np.argsort(-similar, axis=0, kind="stable")[:kept]
    weights = np.zeros_like(similar)
    np.put_along_axis(weights, nearest, np.take_along_axis(similar, nearest, axis=0), axis=0)
    return weights


def ease(likes: Likes, *, regularization: float) -> np.ndarray:
    """What each item says of the others, float64 [items, items], by ridge regression.

    (Steck 2019, Embarrassingly Shallow Autoencoders for Sparse Data, eq. 8.)

    Args:
        likes: of the training split.
        regularization: of the weights.
    """
    gram = np.asarray((likes.T @ likes).todense(), np.float64)
    inverse = np.linalg.inv(gram + regularization * np.eye(len(gram)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


GRIDS: Mapping[str, tuple[Callable[..., np.ndarray], tuple[dict, ...]]] = {
    "itemknn": (
        item_knn,
        tuple({"neighbours": n, "shrink": s} for n in (20, 50, 100, 200) for s in (0.0, 10.0)),
    ),
    "ease": (ease, tuple({"regularization": 50.0 * 2.0**power} for power in range(8))),
}
"""Name -> what makes weights between items, and the settings that validation chooses from."""


def baseline_scores(
    train: Likes, histories: Mapping[str, Likes], choose: Callable[[Scores], float]
) -> tuple[dict[str, Scores], dict[str, dict]]:
    """Scores of all items for the users of the test split.

    Args:
        train: what weights are learned from.
        histories: "validation" and "test" -> what is known of these users, [users, items].
        choose: scores for the users of the validation split -> how good they are.

    Returns:
        By name: the scores, and the settings that were chosen.
    """
    everybody = np.ones((histories["test"].shape[0], 1))
    scores = {"pop": Scores(everybody, popular(train))}
    chosen: dict[str, dict] = {}
    if train.shape[1] > MOST_ITEMS:
        return scores, chosen
    for name, (method, grid) in GRIDS.items():
        best = -np.inf
        # One at a time: items by items, each is as large as memory may be.
        for settings in grid:
            weights = method(train, **settings)
            if (found := choose(Scores(histories["validation"], weights))) > best:
                best, chosen[name] = found, settings
                scores[name] = Scores(histories["test"], weights)
    return scores, chosen


def likes_matrix(users: Sequence[np.ndarray], items: int) -> Likes:
    """A sparse matrix [users, items] of ones.

    Args:
        users: of each int [likes], what they liked.
        items: how many there are.
    """
    rows = np.repeat(np.arange(len(users)), [len(liked) for liked in users])
    ones = np.ones(len(rows))
    return sparse.csr_matrix((ones, (rows, np.concatenate(users))), (len(users), items))
