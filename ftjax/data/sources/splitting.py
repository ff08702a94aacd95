"""Dividing records that come without splits, and drawing some of many."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ftjax.data.sources.records import BadDataError, Records
from ftjax.fields import Field, Fields

SHARES = (0.8, 0.1, 0.1)

FIELDS: Fields = {
    "data.shares": Field(
        SHARES,
        "Of a source without splits: train, validation and test.",
        above=0.0,
        below=1.0,
        items=float,
    ),
    "data.group_field": Field(
        None, "Column whose equal values stay in one split, such as a patient.", optional=str
    ),
    "data.split_seed": Field(
        0,
        "What is drawn from the data comes from it (shares, train_limit, shots), whatever the "
        "run's seed.",
        minimum=0,
        maximum=2**31 - 1,
    ),
}

# Of what is divided, these many pieces make shares that deserve the name.
FEWEST_PIECES = 10
# With more, labels are no classes but numbers, or names that each record has for itself.
MOST_STRATA_PER_RECORD = 0.5


def shares_problem(shares: Sequence[float]) -> str | None:
    """What is wrong with shares, as a sentence, or None."""
    if len(shares) == 3 and abs(sum(shares) - 1.0) < 1e-6:
        return None
    return (
        f"config.data.shares = {tuple(shares)} must be three numbers that sum to 1, of train, "
        "validation and test, such as (0.8, 0.1, 0.1)."
    )


def divide(
    records: Records, shares: Mapping[str, float], seed: int, groups: Sequence[Hashable] | None
) -> dict[str, Records]:
    """Records by split, each in the order of the source.

    Every class has its share in every split, as far as it has examples, and its first one in the
    first split. Records that read the same, or are of one group, stay together.

    Args:
        records: all.
        shares: split -> share; sums to 1.
        seed: of the order in which records are dealt out.
        groups: of each record, or None.

    Raises:
        BadDataError: too few records or groups for so many splits.
    """
    units = _units(records, groups)
    place = _deal(units, strata_of(records), list(shares.values()), seed)
    found = {}
    for index, split in enumerate(shares):
        found[split] = records.chosen(np.flatnonzero(place == index))
        if not len(found[split]):
            what = "groups" if groups is not None else "different records"
            raise BadDataError(
                f"{records.name} has {len(np.unique(units))} {what}, too few to be divided into "
                f"{', '.join(shares)}. Give each split a file of its own, with {{split}} in the "
                "path."
            )
    return found


def draw(records: Records, count: int, seed: int) -> Records:
    """So many of the records, drawn at random, each class in its share; in their order.

    Every class has one at least, if there are no more classes than that.
    """
    if count >= len(records):
        return records
    return records.chosen(drawn(strata_of(records), count, seed))


def drawn(strata: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rising indices of so many of what has these classes; see `draw`.

    Args:
        strata: int [things], each one's class.
        count: how many; all if there are no more.
        seed: of the drawing.
    """
    if count >= len(strata):
        return np.arange(len(strata))
    order = np.random.default_rng([seed, len(strata)]).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    _, start, size = np.unique(strata[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(start, size)
    # Each class, spread evenly over [0, 1): the first so many of all have their shares.
    place = (rank + 0.5) / np.repeat(size, size)
    if len(size) <= count:
        place[rank == 0] = -1.0
    return np.sort(order[np.argsort(place, kind="stable")[:count]])


def draw_of_each(records: Records, shots: int, seed: int) -> Records:
    """So many records of each class, drawn at random; in their order.

    Of a class that has fewer, all.
    """
    names = [str(record["label"]).strip() for record in records]
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    seen: Counter[str] = Counter()
    chosen = []
    for index in order.tolist():
        seen[names[index]] += 1
        if seen[names[index]] <= shots:
            chosen.append(index)
    return records.chosen(np.sort(chosen))


def strata_of(records: Records) -> np.ndarray:
    """The number of each record's class, int [records]; all 0 where labels are no classes."""
    none = np.zeros(len(records), np.int64)
    if not len(records) or not isinstance(records[0].get("label"), str | int | float):
        return none
    names = np.asarray([str(record.get("label")).strip() for record in records])
    classes, strata = np.unique(names, return_inverse=True)
    return none if len(classes) > MOST_STRATA_PER_RECORD * len(records) else strata


def cuts(count: int, shares: Sequence[float]) -> list[int]:
    """Where `count` things in a row are cut, so that each share has one at least if there are any.

    Returns:
        Rising positions, one more than shares, from 0 to `count`.
    """
    at = [round(position * count) for position in np.cumsum([0.0, *shares])]
    for index in range(1, len(shares)):
        at[index] = max(at[index], at[index - 1] + 1)
    for index in range(len(shares) - 1, 0, -1):
        at[index] = min(at[index], at[index + 1] - 1)
    return at


def _units(records: Records, groups: Sequence[Hashable] | None) -> np.ndarray:
    """The number of what each record must stay together with, int [records]."""
    contents = _numbers(records.contents())
    if groups is None:
        return contents
    # Records that are linked by a text or by a group, over however many steps.
    others = _numbers(groups) + contents.max(initial=-1) + 1
    size = others.max(initial=-1) + 1
    links = sparse.coo_matrix((np.ones(len(contents)), (contents, others)), (size, size))
    component = connected_components(links, directed=False)[1][contents]
    return _numbers(component.tolist())


def _numbers(keys: Sequence[Hashable]) -> np.ndarray:
    """Equal keys get equal numbers, from 0 in the order in which they come."""
    known: dict[Hashable, int] = {}
    return np.asarray([known.setdefault(key, len(known)) for key in keys], np.int64)


def _deal(units: np.ndarray, strata: np.ndarray, shares: list[float], seed: int) -> np.ndarray:
    """Which share each record goes to, int [records].

    Units go, in random order within each class, to the share that is owed most. What a class leaves
    owing is carried over to the next, so that small classes add up to the right shares.
    """
    count = units.max(initial=-1) + 1
    sizes = np.bincount(units, minlength=count)
    _, first = np.unique(units, return_index=True)
    unit_strata = strata[first]
    order = np.random.default_rng([seed, count]).permutation(count)
    order = order[np.argsort(unit_strata[order], kind="stable")]
    totals = np.bincount(unit_strata, weights=sizes).tolist()
    place = np.zeros(count, np.int64)
    owed: list[float] = [0.0] * len(shares)
    before = -1
    for unit, stratum in zip(order.tolist(), unit_strata[order].tolist(), strict=True):
        if stratum != before:
            owed = [o + s * totals[stratum] for o, s in zip(owed, shares, strict=True)]
        to = owed.index(max(owed)) if stratum == before else 0
        before = stratum
        place[unit] = to
        owed[to] -= float(sizes[unit])
    return place[units]
