"""Where in its row each vertex of a drawing stands: ways through the graph as straight as can be.

Vertices that shall stand below each other are joined to a column; columns may not cross. Then
columns are moved as a whole: as far left as they go, and from there, step by step, to the middle of
what they are joined to.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

__all__ = ["place"]

_BETWEEN_BOXES = 18
_BESIDE_WIRE = 14
_BETWEEN_WIRES = 11
_ROUNDS = 8


def place(
    rows: list[list[int]],
    segments: list[tuple[int, int]],
    size: list[int],
    boxes: int,
    spine: dict[tuple[int, int], int],
) -> list[float]:
    """The middle of each vertex.

    Args:
        rows: vertices by row, in order.
        segments: pairs of vertices in neighbouring rows, the upper one first.
        size: how wide each vertex is; 0 for a wire that passes.
        boxes: vertices below this number are boxes, the others are wires that pass.
        spine: segments that should run straight before others, the greatest number first.
    """
    column = _columns(rows, segments, len(size), boxes, spine)
    apart = _distances(rows, column, size, boxes)
    count = 1 + max(column)
    left: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    right: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for (a, b), distance in apart.items():
        right[a].append((b, distance))
        left[b].append((a, distance))
    order = _left_to_right(left, right)
    x = [0.0] * count
    for c in order:
        x[c] = max((x[n] + distance for n, distance in left[c]), default=0.0)
    joined: list[list[int]] = [[] for _ in range(count)]
    for upper, lower in segments:
        a, b = column[upper], column[lower]
        if a != b:
            joined[a].append(b)
            joined[b].append(a)
    for turn in range(_ROUNDS):
        for c in order if turn % 2 else reversed(order):
            if joined[c]:
                _move(c, x, joined[c], left[c], right[c])
    return [x[c] for c in column]


def _move(
    c: int,
    x: list[float],
    joined: list[int],
    left: list[tuple[int, float]],
    right: list[tuple[int, float]],
) -> None:
    """Move a column to the middle of what it is joined to, as far as its neighbours let it."""
    goal = sum([x[n] for n in joined]) / len(joined)
    for n, distance in right:
        goal = min(goal, x[n] - distance)
    for n, distance in left:
        goal = max(goal, x[n] + distance)
    x[c] = goal


def _columns(
    rows: list[list[int]],
    segments: list[tuple[int, int]],
    count: int,
    boxes: int,
    spine: dict[tuple[int, int], int],
) -> list[int]:
    """The column of each vertex, by number."""
    row_of = [0] * count
    place_of = [0] * count
    for number, row in enumerate(rows):
        for position, vertex in enumerate(row):
            row_of[vertex], place_of[vertex] = number, position
    accepted: list[list[tuple[int, int]]] = [[] for _ in rows]
    up = [-1] * count
    down = [-1] * count
    for upper, lower in _wanted(segments, boxes, spine):
        if down[upper] >= 0 or up[lower] >= 0:
            continue
        kept = accepted[row_of[upper]]
        pair = (place_of[upper], place_of[lower])
        at = bisect_left(kept, pair)
        if (at and kept[at - 1][1] >= pair[1]) or (at < len(kept) and kept[at][1] <= pair[1]):
            continue  # it would cross what runs straight already
        kept.insert(at, pair)
        down[upper], up[lower] = lower, upper
    column = [-1] * count
    number = 0
    for row in rows:
        for vertex in row:
            if up[vertex] < 0:
                while vertex >= 0:
                    column[vertex] = number
                    vertex = down[vertex]
                number += 1
    return column


def _wanted(
    segments: list[tuple[int, int]], boxes: int, spine: dict[tuple[int, int], int]
) -> list[tuple[int, int]]:
    """Segments that should be straight: the spine, then long wires, then where wires begin."""

    def rank(segment: tuple[int, int]) -> tuple[int, int]:
        upper, lower = segment
        if segment in spine:
            return (0, -spine[segment])
        if upper >= boxes and lower >= boxes:
            return (1, 0)
        return (2, 0) if lower >= boxes else (3, 0)

    wanted = [segment for segment in segments if segment in spine or max(segment) >= boxes]
    return sorted(wanted, key=rank)


def _distances(
    rows: list[list[int]], column: list[int], size: list[int], boxes: int
) -> dict[tuple[int, int], float]:
    """How far apart the middles of columns must be that are neighbours in some row."""
    apart: dict[tuple[int, int], float] = {}
    for row in rows:
        for a, b in pairwise(row):
            if a < boxes and b < boxes:
                between = _BETWEEN_BOXES
            else:
                between = _BESIDE_WIRE if a < boxes or b < boxes else _BETWEEN_WIRES
            distance = (size[a] + size[b]) / 2 + between
            pair = (column[a], column[b])
            if distance > apart.get(pair, 0.0):
                apart[pair] = distance
    return apart


def _left_to_right(
    left: list[list[tuple[int, float]]], right: list[list[tuple[int, float]]]
) -> list[int]:
    """Columns, each after all that stand left of it. As columns do not cross, there is an order."""
    missing = [len(found) for found in left]
    order = [c for c, found in enumerate(missing) if found == 0]
    for c in order:
        for n, _ in right[c]:
            missing[n] -= 1
            if missing[n] == 0:
                order.append(n)
    return order
