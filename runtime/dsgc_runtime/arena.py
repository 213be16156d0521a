"""Where the buffers of a program lie: one block of memory, used again as soon as possible."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ALIGNMENT", "plan"]

ALIGNMENT = 64


def plan(needed: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets of buffers in an arena, and its size.

    Larger ones are placed first, each in the tightest gap between those that live at the same time.

    Args:
        needed: bytes, first and last instruction of every buffer.
    """
    offsets = [0] * len(needed)
    placed: list[tuple[int, int, int, int]] = []  # begin, end, first, last
    total = 0
    for number in sorted(range(len(needed)), key=lambda i: (-needed[i][0], i)):
        size, first, last = needed[number]
        size = -(-size // ALIGNMENT) * ALIGNMENT
        busy = sorted(
            (begin, end) for begin, end, other, until in placed if other <= last and first <= until
        )
        offset = _gap(busy, size)
        offsets[number] = offset
        placed.append((offset, offset + size, first, last))
        total = max(total, offset + size)
    return offsets, total


def _gap(busy: Sequence[tuple[int, int]], size: int) -> int:
    """The beginning of the tightest gap that holds `size` bytes; the end if none does."""
    best, tightest, cursor = -1, 0, 0
    for begin, end in busy:
        room = begin - cursor
        if room >= size and (best < 0 or room < tightest):
            best, tightest = cursor, room
        cursor = max(cursor, end)
    return best if best >= 0 else cursor
