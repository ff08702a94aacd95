"""Texts of any length in rows of one length, without seeing each other."""

import bisect
import collections
import dataclasses

import numpy as np

from ftjax.data.text import TokenizedText


@dataclasses.dataclass(frozen=True)
class PackedText:
    """Rows filled with one or more texts.

    Attributes:
        input_ids: int32 [rows, length], 0 behind the last text.
        segment_ids: int32 [rows, length], 1, 2, ... for the texts of a row, 0 for padding.
        position_ids: int32 [rows, length], from 0 in each segment.
    """

    input_ids: np.ndarray
    segment_ids: np.ndarray
    position_ids: np.ndarray


def pack(tokens: TokenizedText, length: int) -> PackedText:
    """Packs texts into rows in the order they come; first row that has room (first fit).

    A text longer than a row is cut into pieces that are each a segment of their own.

    Args:
        tokens: the texts.
        length: tokens per row.
    """
    pieces = [
        (start, min(start + length, end))
        for begin, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
        for start in range(begin, end, length)
    ]
    rows: list[list[tuple[int, int]]] = []
    room: list[int] = []
    # Rows that are nearly full are not looked at again: packing stays linear in practice.
    first_open = 0
    for start, end in pieces:
        size = end - start
        row = next((i for i in range(first_open, len(rows)) if room[i] >= size), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append((start, end))
        room[row] -= size
        while first_open < len(rows) and (
            room[first_open] < length // 32 or len(rows) - first_open > 64
        ):
            first_open += 1
    packed = PackedText(*(np.zeros((len(rows), length), np.int32) for _ in range(3)))
    for number, members in enumerate(rows):
        at = 0
        for segment, (start, end) in enumerate(members, start=1):
            span = slice(at, at + end - start)
            packed.input_ids[number, span] = tokens.input_ids[start:end]
            packed.segment_ids[number, span] = segment
            packed.position_ids[number, span] = np.arange(end - start)
            at = span.stop
    return packed


def best_fit_decreasing(lengths: np.ndarray, length: int) -> list[list[int]]:
    """Which pieces share a row: the longest first, each in the row that it fills best.

    (Ding et al. 2024, https://arxiv.org/abs/2404.10830; the rows of trl's `pack_dataset`.)

    Args:
        lengths: int [pieces], tokens of each, at most `length`.
        length: tokens per row.

    Returns:
        The pieces of each row, the longest first.
    """
    rows: list[list[int]] = []
    # Rows by the tokens that they have room for, those that have waited longest first.
    waiting: dict[int, collections.deque[int]] = {}
    rooms: list[int] = []
    for piece in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        size = int(lengths[piece])
        at = bisect.bisect_left(rooms, size)
        if at < len(rooms):
            room = rooms[at]
            row = waiting[room].popleft()
            if not waiting[room]:
                del waiting[room], rooms[at]
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if (left := room - size) > 0:
            if left not in waiting:
                bisect.insort(rooms, left)
                waiting[left] = collections.deque()
            waiting[left].append(row)
    return rows
