"""Where the buffers of a program lie: one block of memory, used again as soon as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "plan"]

ALIGNMENT = 64


def plan(needed: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets of buffers in an arena, and its size.

    Larger ones are placed first, each in the tightest gap between those that live at the same time.
    Time grows with the square of their number: seconds for the most that a manifest may have.

    Args:
        needed: bytes, first and last instruction of every buffer.
    """
    offsets = [0] * len(needed)
    # begin, end, first and last of what is placed, in the order of their begin
    placed = np.empty((4, len(needed)), np.int64)
    total = count = 0
    for number in sorted(range(len(needed)), key=lambda i: (-needed[i][0], i)):
        size, first, last = needed[number]
        size = -(-size // ALIGNMENT) * ALIGNMENT
        there = placed[:, :count]
        busy = there[:2, (there[2] <= last) & (first <= there[3])]
        offset = offsets[number] = _gap(busy, size)
        at = int(np.searchsorted(there[0], offset))
        placed[:, at + 1 : count + 1] = there[:, at:].copy()
        placed[:, at] = (offset, offset + size, first, last)
        total, count = max(total, offset + size), count + 1
    return offsets, total


def _gap(busy: NDArray[np.int64], size: int) -> int:
    """The beginning of the tightest gap that holds `size` bytes; the end if none does.

    Args:
        busy: begins and ends [2, buffers], ordered by begin.
    """
    if busy.shape[1] == 0:
        return 0
    begins, ends = busy
    taken: NDArray[Any] = np.maximum.accumulate(ends)
    starts = np.concatenate(([0], taken[:-1]))
    room = begins - starts
    room[room < size] = np.iinfo(np.int64).max
    best = int(room.argmin())
    fits = room[best] < np.iinfo(np.int64).max
    return int(starts[best]) if fits else int(taken[-1])
