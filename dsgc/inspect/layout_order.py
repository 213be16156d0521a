"""The order of what stands in each row of a drawing, so that few edges cross."""

from __future__ import annotations

from bisect import bisect_right, insort

__all__ = ["count_crossings", "order_rows", "put_beside"]

_MOST_SWEEPS = 8


def order_rows(
    rows: list[list[int]], segments: list[tuple[int, int]], count: int
) -> list[list[int]]:
    """Order each row by the mean place of its neighbours in the row above, then below, and so on.

    Args:
        rows: vertices by row.
        segments: pairs of vertices in neighbouring rows, the upper one first.
        count: how many vertices there are.

    Returns:
        The rows of the sweep with the fewest crossings, in which then neighbours are exchanged
        as long as that leaves fewer.
    """
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for upper, lower in segments:
        above[lower].append(upper)
        below[upper].append(lower)
    rows = [list(row) for row in rows]
    place = [0] * count
    for row in rows:
        for position, vertex in enumerate(row):
            place[vertex] = position
    best, fewest = [list(row) for row in rows], -1
    idle = 0
    for sweep in range(_MOST_SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows[1:] if downwards else rows[-2::-1]:
            _sort(row, above if downwards else below, place)
        crossings = count_crossings(rows, below, place)
        if fewest < 0 or crossings < fewest:
            best, fewest, idle = [list(row) for row in rows], crossings, 0
        else:
            idle += 1
        if fewest == 0 or idle == 3:
            break
    for row in best:
        for position, vertex in enumerate(row):
            place[vertex] = position
    if fewest:
        _exchange(best, above, below, place)
    return best


def count_crossings(rows: list[list[int]], below: list[list[int]], place: list[int]) -> int:
    """How many pairs of segments cross, `place` being each vertex's position in its row."""
    total = 0
    for row in rows[:-1]:
        if len(row) == 1:
            continue
        seen: list[int] = []
        for vertex in row:
            ends = [place[lower] for lower in below[vertex]]
            for end in ends:
                total += len(seen) - bisect_right(seen, end)
            for end in ends:
                insort(seen, end)
    return total


def put_beside(
    rows: list[list[int]], segments: list[tuple[int, int]], beside: dict[int, tuple[int, int]]
) -> None:
    """Move vertices that read nothing, such as parameters, to where they disturb least.

    Args:
        rows: vertices by row, in order; changed.
        segments: pairs of vertices in neighbouring rows, the upper one first.
        beside: for such a vertex, one of its row that has the same reader, and that reader.
    """
    row_of = {vertex: row for row in rows for vertex in row}
    place = {vertex: position for row in rows for position, vertex in enumerate(row)}
    below: dict[int, list[int]] = {}
    for upper, lower in segments:
        below.setdefault(upper, []).append(lower)
    for vertex, (anchor, reader) in beside.items():
        row = row_of[anchor]
        row.remove(vertex)
        at = row.index(anchor)
        others = [place[lower] - place[reader] for lower in below[anchor]]
        crossed_left, crossed_right = sum(d < 0 for d in others), sum(d > 0 for d in others)
        left = (crossed_left, at) <= (crossed_right, len(row) - 1 - at)
        row.insert(at if left else at + 1, vertex)


def _sort(row: list[int], neighbours: list[list[int]], place: list[int]) -> None:
    """Sort a row by the mean place of neighbours; what has none keeps its place."""
    if len(row) == 1:
        return
    goal = {}
    for position, vertex in enumerate(row):
        near = neighbours[vertex]
        goal[vertex] = sum([place[n] for n in near]) / len(near) if near else float(position)
    row.sort(key=goal.__getitem__)
    for position, vertex in enumerate(row):
        place[vertex] = position


def _exchange(
    rows: list[list[int]], above: list[list[int]], below: list[list[int]], place: list[int]
) -> None:
    """Exchange neighbours in a row where that leaves fewer crossings."""
    for _ in range(2):
        improved = False
        for row in rows:
            for i in range(len(row) - 1):
                left, right = row[i], row[i + 1]
                gain = _gain(above, left, right, place) + _gain(below, left, right, place)
                if gain > 0:
                    row[i], row[i + 1] = right, left
                    place[left], place[right] = i + 1, i
                    improved = True
        if not improved:
            break


def _gain(neighbours: list[list[int]], left: int, right: int, place: list[int]) -> int:
    """How many crossings less there are on one side if `left` and `right` change places."""
    gain = 0
    for a in neighbours[left]:
        at = place[a]
        for b in neighbours[right]:
            if at > place[b]:
                gain += 1
            elif at < place[b]:
                gain -= 1
    return gain
