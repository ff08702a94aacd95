"""How well a ranking of a whole catalogue finds what people go on to like; names are RecBole's.

The whole catalogue is ranked, and not a sample of it, which would order methods otherwise
(Krichene & Rendle 2020, On Sampled Metrics for Item Recommendation). What a person is known to like
is no candidate. Where items score alike, each metric is its mean over all orders of them: else a
method that says nothing would be scored by how the catalogue is sorted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

DEPTH = 10
# Users whose scores of the whole catalogue are held at once.
USERS_AT_ONCE = 256

USER_METRICS = {
    "recall@10": "higher",
    "ndcg@10": "higher",
    "mrr@10": "higher",
    "hit@10": "higher",
    "precision@10": "higher",
    "map@10": "higher",
}
"""What is scored of each user -> which way is better."""
CATALOGUE_METRICS = {
    "itemcoverage@10": "higher",
    "averagepopularity@10": "lower",
    "giniindex@10": "lower",
}
"""What is scored of all recommendations together."""


class Scores(NamedTuple):
    """Scores of items for users as a product, so that never all of them are in memory.

    Attributes:
        users: [users, hidden], dense or sparse.
        items: float [hidden, items].
    """

    users: Any
    items: np.ndarray

    def of(self, part: slice) -> np.ndarray:
        """Of some users, float64 [users, items], higher is better."""
        return np.asarray(self.users[part] @ self.items, np.float64)


class Audience(NamedTuple):
    """Users to whom items are recommended.

    Attributes:
        known: sparse [users, items], above 0 for what they are known to like: no candidate.
        liked: sparse [users, items], above 0 for what they then liked, one at least of each user.
    """

    known: Any
    liked: Any

    def only(self, items: np.ndarray) -> tuple["Audience", np.ndarray]:
        """Some of the items, and the users who then liked one of them; both are bool masks."""
        liked = self.liked[:, items]
        users = np.asarray(liked.sum(1)).ravel() > 0
        return Audience(self.known[users][:, items], liked[users]), users


def user_metrics(scores: Scores, audience: Audience) -> dict[str, np.ndarray]:
    """The `USER_METRICS` of each user, float64 [users].

    NDCG and MAP are divided by the best that so many liked items allow within the depth, as RecBole
    does; MRR counts the first within it.
    """
    return _joined([_of_users(*part) for part in _parts(scores, audience)])


def all_metrics(scores: Scores, audience: Audience, popularity: np.ndarray) -> dict[str, float]:
    """The means of `user_metrics`, and the `CATALOGUE_METRICS`.

    Args:
        scores: of the audience.
        audience: who is recommended something.
        popularity: float [items], how often each is liked in training.
    """
    found, shown = [], []
    for values, liked, known in _parts(scores, audience):
        found.append(_of_users(values, liked, known))
        shown.append(recommended(values, known))
    means = {name: float(values.mean()) for name, values in _joined(found).items()}
    return means | catalogue_metrics(np.concatenate(shown), popularity)


def _parts(scores: Scores, audience: Audience) -> Iterator[tuple[np.ndarray, ...]]:
    """Scores, what is liked and what is known, [users, items], of some users at a time."""
    for start in range(0, audience.liked.shape[0], USERS_AT_ONCE):
        part = slice(start, start + USERS_AT_ONCE)
        yield scores.of(part), _dense(audience.liked[part]), _dense(audience.known[part])


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in USER_METRICS}


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() > 0


def _of_users(scores: np.ndarray, relevant: np.ndarray, known: np.ndarray) -> dict:
    scores = np.where(known, -np.inf, scores.astype(np.float64))
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=1)
    size, hits, within, before = _groups(scores, np.take_along_axis(relevant, order, axis=1))
    total, places = relevant.sum(1), np.arange(1, size.shape[1] + 1)
    share = hits / size
    gains = 1 / np.log2(places + 1)
    best = np.cumsum(gains)[np.minimum(total, len(places)) - 1]
    # That the first hit is here if none was before: of a group's items, those not yet drawn.
    first = np.minimum(hits / np.maximum(size - within, 1), 1.0)
    none_yet = np.cumprod(1 - first, axis=1)
    none_before = np.concatenate([np.ones((len(first), 1)), none_yet[:, :-1]], axis=1)
    # Hits up to here, if this is one: those of the groups above, itself, others of its own group.
    beside = within * (hits - 1) / np.maximum(size - 1, 1)
    precisions = share * (before + 1 + beside) / places
    return {
        "recall@10": share.sum(1) / total,
        "ndcg@10": share @ gains / best,
        "mrr@10": (none_before * first / places).sum(1),
        "hit@10": 1 - none_yet[:, -1],
        "precision@10": share.sum(1) / DEPTH,
        "map@10": precisions.sum(1) / np.minimum(total, DEPTH),
    }


def _groups(scores: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the first places of sorted scores, about the items that score alike there.

    Returns:
        [users, places]: how many there are, how many of them are relevant, how many of them stand
        in places above, and how many relevant ones score higher.
    """
    users, items = scores.shape
    starts = np.ones((users, items), bool)
    starts[:, 1:] = scores[:, 1:] != scores[:, :-1]
    number = np.cumsum(starts, axis=1) - 1 + items * np.arange(users)[:, None]
    size = np.bincount(number.ravel(), minlength=users * items)
    hits = np.bincount(number.ravel(), weights=relevant.ravel(), minlength=users * items)
    places = number[:, :DEPTH]
    start = np.maximum.accumulate(np.where(starts, np.arange(items), 0), axis=1)[:, :DEPTH]
    above = np.concatenate([np.zeros((users, 1)), np.cumsum(relevant, axis=1)], axis=1)
    before = np.take_along_axis(above, start, axis=1)
    return size[places], hits[places], np.arange(places.shape[1]) - start, before


def recommended(scores: np.ndarray, known: np.ndarray, count: int = DEPTH) -> np.ndarray:
    """The best candidates of each user, int [users, count]; ties by the catalogue's order.

    Args:
        scores: float [users, items].
        known: bool [users, items], what is no candidate.
        count: at most how many; -1 stands where there are no more candidates.
    """
    scores = np.where(known, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(known, order, axis=1), -1, order)


def catalogue_metrics(items: np.ndarray, popularity: np.ndarray) -> dict[str, float]:
    """The `CATALOGUE_METRICS` of all recommendations, by RecBole's formulas.

    Args:
        items: int [users, depth], what is recommended; -1 for nothing.
        popularity: int [items], how often each is liked in training.
    """
    shown = np.bincount(items[items >= 0], minlength=len(popularity))
    counts = np.sort(shown[shown > 0])
    count = len(popularity)
    rank = np.arange(count - len(counts) + 1, count + 1)
    gini = np.sum((2 * rank - count - 1) * counts) / counts.sum() / count
    liked = np.where(items >= 0, popularity[items], 0)
    return {
        "itemcoverage@10": len(counts) / count,
        "averagepopularity@10": float(liked.mean(1).mean()),
        "giniindex@10": float(gini),
    }
