"""Who liked what, when; and how it is divided to find out what people go on to like.

Names are RecBole's: `eval_args` say how interactions are divided (its documentation, "Evaluation
settings").
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftjax.data.numbers import encode_numbers
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadDataError, bad_record, of_each

SPLITS = ("train", "validation", "test")
EVAL_ARGS: Mapping[str, Mapping[str, Any]] = {
    "global_time": {"split": "RS", "group_by": "none", "order": "TO", "mode": "full"},
    "leaky_leave_one_out": {"split": "LS", "group_by": "user", "order": "TO", "mode": "full"},
    "leaky_random": {"split": "RS", "group_by": "user", "order": "RO", "mode": "full"},
}
"""Our name -> what RecBole calls it. What leaks is the future: what others liked later is learned
from (Ji et al. 2020, On Offline Evaluation of Recommender Systems, 2010.11060)."""


@dataclasses.dataclass(frozen=True)
class Interactions:
    """What was liked, in the order in which it is learned, with the split of each.

    Attributes:
        users: int32 [likes], the number of who liked it.
        items: int32 [likes], the number of what was liked, in the catalogue.
        splits: int8 [likes], 0 for train, 1 for validation, 2 for test.
        user_names: of each user.
        repeated: how many likes were left out since the same stands earlier.
    """

    users: np.ndarray
    items: np.ndarray
    splits: np.ndarray
    user_names: Sequence[str]
    repeated: int

    def of_users(self, last_split: int) -> list[np.ndarray]:
        """What each user liked in splits up to this one, in order."""
        chosen = self.splits <= last_split
        users, items = self.users[chosen], self.items[chosen]
        order = np.argsort(users, kind="stable")
        bounds = np.cumsum(np.bincount(users, minlength=len(self.user_names)))[:-1]
        return np.split(items[order], bounds)


def read_catalogue(records: Records, text_names: Sequence[str]) -> dict[str, str]:
    """Items by their ids, as texts.

    Args:
        records: each with `item` and the columns of its text.
        text_names: what the text is made of, in this order.

    Raises:
        BadRecordError: an item without a text, or two with one id.
    """
    found: dict[str, str] = {}

    def read(index: int) -> None:
        name = name_of(records[index]["item"])
        words = [str(records[index][column]).strip() for column in text_names]
        if not any(words):
            raise bad_record(
                records,
                index,
                f"the item {name!r} has no text in {', '.join(text_names)}. Give it one, or leave "
                "it out with what people thought of it.",
            )
        if name in found:
            raise bad_record(
                records, index, f"the item {name!r} stands in the catalogue before. Leave one out."
            )
        found[name] = ", ".join(word for word in words if word)

    of_each(records, read)
    return found


def read_likes(records: Records, catalogue: Sequence[str], minimum: float | None) -> np.ndarray:
    """Which records are likes, bool [records].

    Args:
        records: each with `user` and `item`; with `rating` where there is a minimum.
        catalogue: ids of all items.
        minimum: the lowest rating of what was liked; None: all was.

    Raises:
        BadRecordError: an item that is not in the catalogue, no user, or a rating that is none.
    """
    known = set(catalogue)

    def check(index: int) -> None:
        item, user = (name_of(records[index][name]) for name in ("item", "user"))
        if item not in known:
            raise bad_record(
                records,
                index,
                f"the item {item!r} is not in config.data.catalogue. Add it there with its text, "
                "or leave the record out.",
            )
        if not user:
            raise bad_record(records, index, "the user is empty. Fill it or leave the record out.")

    of_each(records, check)
    if minimum is None:
        return np.ones(len(records), bool)
    liked = encode_numbers(records, "rating") >= minimum
    if not liked.any():
        raise BadDataError(
            f"{records.name}: no rating is as high as config.data.min_rating = {minimum:g}."
        )
    return liked


def divide_interactions(
    records: Records,
    catalogue: Sequence[str],
    *,
    how: str,
    shares: Sequence[float],
    seed: int,
) -> Interactions:
    """Likes in their order, each in its split; what somebody liked twice counts when it first was.

    Args:
        records: likes with `user`, `item` and, where time matters, `time`.
        catalogue: ids of all items.
        how: one of `EVAL_ARGS`.
        shares: of train, validation and test.
        seed: of random order.

    Raises:
        BadRecordError: a time that is no number.
        BadDataError: too little to be divided.
    """
    numbers = {name: index for index, name in enumerate(catalogue)}
    names: dict[str, int] = {}
    users = np.asarray([names.setdefault(name_of(r["user"]), len(names)) for r in records])
    items = np.asarray([numbers[name_of(record["item"])] for record in records])
    times = encode_numbers(records, "time") if _by_time(how) else np.arange(len(records))
    order = np.argsort(times, kind="stable")
    _, first = np.unique(np.stack([users, items])[:, order], axis=1, return_index=True)
    order = order[np.sort(first)]
    if not _by_time(how):
        order = order[np.random.default_rng([seed, len(order)]).permutation(len(order))]
    users, items, times = users[order], items[order], times[order]
    if how == "global_time":
        splits = _by_clock(times, shares)
    else:
        rule = _last_ones if how == "leaky_leave_one_out" else _shares_of
        splits = _by_user(users, lambda count: rule(count, shares))
    missing = [name for number, name in enumerate(SPLITS) if not np.any(splits == number)]
    if missing:
        raise BadDataError(
            f"{records.name}: {len(splits):,} likes of {len(names):,} users are too few to be "
            f"divided ({how}): {' and '.join(missing)} would be empty."
        )
    return Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        splits.astype(np.int8),
        list(names),
        len(records) - len(order),
    )


def name_of(value: Any) -> str:
    """An id as text: 7, 7.0 and "7" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _by_time(how: str) -> bool:
    return EVAL_ARGS[how]["order"] == "TO"


def _by_clock(times: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """What happened at one moment is in one split."""
    at = np.round(np.cumsum(shares)[:2] * len(times)).astype(int)
    return np.searchsorted(times[np.minimum(at, len(times) - 1)], times, side="right")


def _by_user(users: np.ndarray, rule) -> np.ndarray:
    splits = np.zeros(len(users), np.int64)
    order = np.argsort(users, kind="stable")
    for mine in np.split(order, np.cumsum(np.bincount(users))[:-1]):
        splits[mine] = rule(len(mine))
    return splits


def _shares_of(count: int, shares: Sequence[float]) -> np.ndarray:
    """As RecBole counts them: rounded down, but one at least in the last if there are two."""
    counts = [int(share * count) for share in shares]
    counts[0] = count - sum(counts[1:])
    for split in (2, 1):
        if counts[0] > 1 and 0 < shares[split] * count < 1:
            counts[split] += 1
            counts[0] -= 1
    return np.repeat(np.arange(3), counts)


def _last_ones(count: int, shares: Sequence[float]) -> np.ndarray:
    """As RecBole does: the last for test, the one before for validation."""
    held_out = min(2, count - 1)
    return np.asarray([0] * (count - held_out) + [1, 2][2 - held_out :])
