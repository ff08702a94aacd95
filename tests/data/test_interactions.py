"""Likes, divided by clock, by user and at random."""

import numpy as np
import pytest

from ftjax.data.histories import rows_of_user
from ftjax.data.interactions import (
    EVAL_ARGS,
    divide_interactions,
    name_of,
    read_catalogue,
    read_likes,
)
from ftjax.data.sources import Records
from ftjax.data.sources.records import BadRecordError

SHARES = (0.8, 0.1, 0.1)
ITEMS = [str(n) for n in range(50)]


def likes(*rows):
    names = ("user", "item", "time")
    return Records("likes", [dict(zip(names, row, strict=True)) for row in rows])


def many(users=20, each=10):
    random = np.random.default_rng(0)
    rows = [
        (f"u{user}", str(item), float(random.integers(0, 10_000)))
        for user in range(users)
        for item in random.permutation(50)[:each]
    ]
    return likes(*rows)


def divided(records, how, **settings):
    return divide_interactions(records, ITEMS, how=how, **{"shares": SHARES, "seed": 0, **settings})


def test_by_the_clock_no_split_knows_of_a_later_one():
    records = many()
    found = divided(records, "global_time")
    times = sorted(record["time"] for record in records)
    assert np.bincount(found.splits).tolist() == [160, 20, 20]
    assert np.all(np.diff(found.splits) >= 0)
    names = [(found.user_names[u], ITEMS[i]) for u, i in zip(found.users, found.items, strict=True)]
    time_of = {(r["user"], r["item"]): r["time"] for r in records}
    assert [time_of[name] for name in names] == times


def test_one_moment_is_in_one_split():
    records = likes(*((f"u{n}", str(n % 7), 5.0 if 2 <= n < 9 else n) for n in range(12)))
    found = divided(records, "global_time", shares=(0.5, 0.25, 0.25))
    moments = {}
    for user, split in zip(found.users, found.splits, strict=True):
        moment = records[int(found.user_names[user][1:])]["time"]
        moments.setdefault(moment, set()).add(int(split))
    assert all(len(splits) == 1 for splits in moments.values())


def test_the_last_two_of_each_user():
    found = divided(many(), "leaky_leave_one_out")
    for user in range(20):
        assert found.splits[found.users == user].tolist() == [0] * 8 + [1, 2]
    few = likes(("a", "1", 1), ("b", "1", 1), ("b", "2", 2), *(("c", str(n), n) for n in range(3)))
    found = divided(few, "leaky_leave_one_out")
    of_user = {name: found.splits[found.users == n] for n, name in enumerate(found.user_names)}
    assert {name: s.tolist() for name, s in of_user.items()} == {
        "a": [0],
        "b": [0, 2],
        "c": [0, 1, 2],
    }


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (10, [8, 1, 1]), (25, [21, 2, 2])],
)
def test_shares_of_each_user_as_recbole_counts_them(count, expected):
    rows = [("a", str(n), 0) for n in range(count)] + [("b", str(n), 0) for n in range(10)]
    found = divided(likes(*rows), "leaky_random")
    user = found.user_names.index("a")
    assert np.bincount(found.splits[found.users == user], minlength=3).tolist() == expected


def test_random_order_comes_from_the_seed_alone():
    first, again, other = (divided(many(), "leaky_random", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.items, again.items)
    assert not np.array_equal(first.items, other.items)


def test_what_was_liked_before_counts_once():
    found = divided(
        likes(*((f"u{n}", "1", n) for n in range(10)), ("u3", "1", 99), ("u4", 1.0, -1)),
        "global_time",
    )
    assert found.repeated == 2
    assert len(found.users) == 10
    # The first of both counts.
    assert found.user_names[found.users[0]] == "u4"


def test_of_users_is_in_order_and_grows():
    found = divided(many(), "global_time")
    for before, after in zip(found.of_users(0), found.of_users(2), strict=True):
        assert after[: len(before)].tolist() == before.tolist()
        assert len(after) == 10
    assert sum(map(len, found.of_users(1))) == 180


def test_histories_are_what_came_before():
    rows = list(rows_of_user(np.arange(6), most=3, targets=2))
    assert [(a.tolist(), b.tolist()) for a, b in rows] == [
        ([0], [1, 2]),
        ([0, 1, 2], [3, 4]),
        ([2, 3, 4], [5]),
    ]
    assert not list(rows_of_user(np.arange(1), most=3, targets=2))


def test_too_few_to_divide():
    with pytest.raises(ValueError, match=r"2 likes of 1 users are too few .* validation"):
        divided(likes(("a", "1", 1), ("a", "2", 2)), "global_time")


def test_catalogue():
    rows = [
        {"item": 7, "text 0": "Toy Story ", "text 1": 1995},
        {"item": "8", "text 0": "", "text 1": "only this"},
    ]
    assert read_catalogue(Records("items", rows), ["text 0", "text 1"]) == {
        "7": "Toy Story, 1995",
        "8": "only this",
    }
    rows += [
        {"item": 7.0, "text 0": "again", "text 1": ""},
        {"item": 9, "text 0": " ", "text 1": ""},
    ]
    with pytest.raises(BadRecordError, match=r"record 3: the item '7' stands .* before") as found:
        read_catalogue(Records("items", rows), ["text 0", "text 1"])
    assert "item '9' has no text" in found.value.problems[3]


def test_likes_of_what_is_not_there():
    rows = [{"user": "a", "item": "1"}, {"user": " ", "item": "1"}, {"user": "b", "item": "77"}]
    with pytest.raises(BadRecordError, match="record 2: the user is empty") as found:
        read_likes(Records("likes", rows), ITEMS, None)
    assert "'77' is not in config.data.catalogue" in found.value.problems[2]


def test_ratings_say_what_is_liked():
    rows = [{"user": "a", "item": "1", "rating": value} for value in (3, "4", 4.5)]
    assert read_likes(Records("likes", rows), ITEMS, 4.0).tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"no rating is as high as config.data.min_rating = 6"):
        read_likes(Records("likes", rows), ITEMS, 6.0)
    rows[1]["rating"] = "many"
    with pytest.raises(BadRecordError, match="record 2: the rating is 'many'"):
        read_likes(Records("likes", rows), ITEMS, 4.0)


def test_one_name_however_it_is_written():
    assert {name_of(value) for value in (7, 7.0, "7", " 7 ")} == {"7"}


def test_names_are_recboles():
    """https://recbole.io/docs/user_guide/config/evaluation_settings.html"""
    for args in EVAL_ARGS.values():
        assert args["split"] in ("RS", "LS")
        assert args["order"] in ("RO", "TO")
        assert args["group_by"] in ("user", "none")
