"""Where the nodes of a graph are drawn, and how its edges run between them.

Rows go downwards. Every node stands in a row below all that it reads, on boxes of one height, so a
row is a band that holds boxes and nothing else but vertical lines between them. All edges of a
style that leave a node are one wire: it runs down as far as its last reader and branches off to
each. A wire bends only in the gaps between rows, and passes a row in a place kept free for it, so
no edge runs through a foreign box. Sizes are in CSS pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from dsgc.errors import DsgcError
from dsgc.inspect.layout_columns import place
from dsgc.inspect.layout_order import order_rows, put_beside

__all__ = ["BOX_HEIGHT", "CycleError", "Layout", "Line", "Style", "Wire", "lay_out"]

Style = Literal["dense", "packed", "selection"]

BOX_HEIGHT = 40
MARGIN = 24
_SMALLEST_GAP = 24
_LARGEST_GAP = 80
_PORT_INSET = 14
_PORT_DISTANCE = 9
_LANE_DISTANCE = 10


class CycleError(DsgcError, ValueError):
    """A graph to be drawn has a cycle. `node` is part of it, or reads, by others, a part of it."""

    def __init__(self, node: int) -> None:
        super().__init__(f"node {node} is part of a cycle or reads from one; cut the cycle")
        self.node = node


@dataclass(frozen=True)
class Line:
    """An edge to be laid out: from node `source` to node `target`, by number."""

    source: int
    target: int
    style: Style = "dense"


@dataclass(frozen=True)
class Wire:
    """The edges of one style that leave a node.

    Attributes:
        source: the node.
        style: of the edges.
        start: where it leaves the lower side of the source's box.
        bends: where it passes the rows below the source, in order: (x, number of rows).
        ends: the readers, and where it enters the upper side of their boxes. It branches off in
            the gap above the reader's row.
    """

    source: int
    style: Style
    start: int
    bends: tuple[tuple[int, int], ...]
    ends: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """A drawing.

    Attributes:
        width, height: of everything, with a margin.
        x: the middle of each node's box.
        row: the row of each node.
        tops: the upper side of each row; boxes are BOX_HEIGHT high.
        wires: the edges.
    """

    width: int
    height: int
    x: tuple[int, ...]
    row: tuple[int, ...]
    tops: tuple[int, ...]
    wires: tuple[Wire, ...]


@dataclass
class _Plan:
    """A wire while it is laid out; `stops` are the vertices that stand for it in the rows."""

    source: int
    style: Style
    targets: list[int]
    stops: list[int] = field(default_factory=list)
    lane: int | None = None


def lay_out(
    widths: Sequence[int], lines: Sequence[Line], inputs: frozenset[int] = frozenset()
) -> Layout:
    """Lay out the graph whose nodes have boxes of `widths`.

    Nodes that no input leads to, such as parameters, stand right above their first reader.

    Args:
        widths: of the boxes, one a node.
        lines: the edges; what runs twice in one style is drawn once.
        inputs: the nodes at which the graph begins; all that read nothing, if empty.

    Raises:
        CycleError: a node reads, perhaps by others, its own value.
    """
    if not widths:
        return Layout(0, 0, (), (), (), ())
    before, after = _neighbours(len(widths), lines)
    order = _sorted_by_reading(before, after)
    starts = inputs or frozenset(node for node in order if not before[node])
    floating = _not_led_to(before, order, starts)
    row = _rows(before, after, order, floating)
    plans = _plans(lines, row)
    _use_lanes(plans, row, budget=4 * len(widths) + 4000)

    size = list(widths)
    rows: list[list[int]] = [[] for _ in range(max(row) + 1)]
    for node in order:
        rows[row[node]].append(node)
    segments = _segments(plans, row, rows, size)
    rows = order_rows(rows, segments, len(size))
    spine = _spine(plans, row, order, floating - starts)
    anchors = {lower: upper for upper, lower in spine}
    beside = {
        node: (anchors[after[node][0]], after[node][0])
        for node in order
        if node in floating and not before[node] and len(after[node]) == 1
        if after[node][0] in anchors and anchors[after[node][0]] != node
    }
    put_beside(rows, segments, beside)
    x = place(rows, segments, size, len(widths), spine)
    return _assemble(widths, plans, row, len(rows), x)


def _neighbours(count: int, lines: Sequence[Line]) -> tuple[list[list[int]], list[list[int]]]:
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in dict.fromkeys((line.source, line.target) for line in lines):
        before[target].append(source)
        after[source].append(target)
    return before, after


def _sorted_by_reading(before: list[list[int]], after: list[list[int]]) -> list[int]:
    missing = [len(sources) for sources in before]
    order = [node for node, count in enumerate(missing) if count == 0]
    for node in order:
        for target in after[node]:
            missing[target] -= 1
            if missing[target] == 0:
                order.append(target)
    if len(order) < len(before):
        raise CycleError(next(node for node, count in enumerate(missing) if count))
    return order


def _not_led_to(before: list[list[int]], order: list[int], starts: frozenset[int]) -> set[int]:
    """Nodes that none of `starts` leads to, and `starts` themselves."""
    led_to: set[int] = set()
    for node in order:
        if any(source in led_to or source in starts for source in before[node]):
            led_to.add(node)
    return set(order) - led_to


def _rows(
    before: list[list[int]], after: list[list[int]], order: list[int], floating: set[int]
) -> list[int]:
    """The length of the longest way to each node; floating ones are let down to their readers."""
    row = [0] * len(order)
    for node in order:
        row[node] = 1 + max((row[source] for source in before[node]), default=-1)
    for node in reversed(order):
        if node in floating and after[node]:
            row[node] = min(row[target] for target in after[node]) - 1
    lowest = min(row)
    return [place - lowest for place in row]


def _spine(
    plans: list[_Plan], row: list[int], order: list[int], floating: set[int]
) -> dict[tuple[int, int], int]:
    """Segments on the way of the data, which should be straight; the greatest number first.

    Every node passes its data on to the reader from which the way is longest, selections not
    counted, and every reader listens to the one of those whose data came the longest way.
    """
    leaving: dict[int, list[_Plan]] = {}
    for plan in plans:
        if plan.style != "selection" and plan.lane is None:
            leaving.setdefault(plan.source, []).append(plan)
    left = [0] * len(order)
    for node in reversed(order):
        for plan in leaving.get(node, ()):
            left[node] = max(left[node], 1 + max(left[target] for target in plan.targets))
    come = [0] * len(order)
    heard: dict[int, tuple[int, _Plan]] = {}
    for node in order:
        readers = []
        for plan in leaving.get(node, ()):
            for target in plan.targets:
                come[target] = max(come[target], 1 + come[node])
                readers.append((left[target], plan.style == "packed", -target, plan))
        if readers and node not in floating:
            *_, number, plan = max(readers, key=lambda reader: reader[:3])
            if -number not in heard or come[node] > heard[-number][0]:
                heard[-number] = (come[node], plan)
    spine: dict[tuple[int, int], int] = {}
    for target, (_, plan) in heard.items():
        way = [plan.source, *plan.stops[: row[target] - row[plan.source] - 1], target]
        spine.update(dict.fromkeys(pairwise(way), left[plan.source]))
    return spine


def _plans(lines: Sequence[Line], row: list[int]) -> list[_Plan]:
    targets: dict[tuple[int, Style], dict[int, None]] = {}
    for line in lines:
        targets.setdefault((line.source, line.style), {})[line.target] = None
    return [
        _Plan(source, style, sorted(found, key=lambda target: (row[target], target)))
        for (source, style), found in targets.items()
    ]


def _use_lanes(plans: list[_Plan], row: list[int], budget: int) -> None:
    """Send the longest wires down beside the graph if there are too many rows to pass.

    Placing costs time for every row that a wire passes. Beside the graph that is free.
    """

    def span(plan: _Plan) -> int:
        return row[plan.targets[-1]] - row[plan.source] - 1

    passed = sum(map(span, plans))
    free_from: list[int] = []
    chosen = []
    for plan in sorted(plans, key=span, reverse=True):
        if passed <= budget:
            break
        passed -= span(plan)
        chosen.append(plan)
    for plan in sorted(chosen, key=lambda plan: (row[plan.source], plan.source)):
        first, last = row[plan.source], row[plan.targets[-1]]
        lane = next((i for i, free in enumerate(free_from) if free <= first), len(free_from))
        free_from[lane : lane + 1] = [last]
        plan.lane = lane


def _segments(
    plans: list[_Plan], row: list[int], rows: list[list[int]], size: list[int]
) -> list[tuple[int, int]]:
    """Give wires a vertex in each row they pass; what is joined between neighbouring rows."""
    segments: dict[tuple[int, int], None] = {}
    for plan in plans:
        if plan.lane is not None:
            continue
        first = row[plan.source]
        stops = [plan.source]
        for passed in range(first + 1, row[plan.targets[-1]]):
            rows[passed].append(len(size))
            stops.append(len(size))
            size.append(0)
        segments.update(dict.fromkeys(pairwise(stops)))
        for target in plan.targets:
            segments[stops[row[target] - 1 - first], target] = None
        plan.stops = stops[1:]
    return list(segments)


def _assemble(
    widths: Sequence[int], plans: list[_Plan], row: list[int], count: int, x: list[float]
) -> Layout:
    shift = MARGIN - min(
        x[vertex] - (widths[vertex] / 2 if vertex < len(widths) else 0) for vertex in range(len(x))
    )
    place = [round(value + shift) for value in x]
    right = max(
        place[vertex] + (-(-widths[vertex] // 2) if vertex < len(widths) else 0)
        for vertex in range(len(place))
    )
    lanes = 1 + max((plan.lane for plan in plans if plan.lane is not None), default=-1)
    passes = [_passes(plan, row, place, right) for plan in plans]
    starts, ends = _ports(widths, plans, row, place, passes)
    wires = []
    slopes = [0] * count
    for plan, passed, start, entered in zip(plans, passes, starts, ends, strict=True):
        way = [start, *passed]
        first = row[plan.source]
        for step, (a, b) in enumerate(pairwise(way)):
            slopes[first + step] = max(slopes[first + step], abs(a - b))
        for target, port in entered:
            above = row[target] - 1
            slopes[above] = max(slopes[above], abs(way[above - first] - port))
        wires.append(Wire(plan.source, plan.style, start, _runs(passed), tuple(entered)))
    tops = [MARGIN]
    for slope in slopes[:-1]:
        gap = min(_LARGEST_GAP, _SMALLEST_GAP + slope // 8)
        tops.append(tops[-1] + BOX_HEIGHT + gap)
    return Layout(
        width=right + MARGIN + (MARGIN + lanes * _LANE_DISTANCE if lanes else 0),
        height=tops[-1] + BOX_HEIGHT + MARGIN,
        x=tuple(place[: len(widths)]),
        row=tuple(row),
        tops=tuple(tops),
        wires=tuple(wires),
    )


def _passes(plan: _Plan, row: list[int], place: list[int], right: int) -> list[int]:
    if plan.lane is None:
        return [place[stop] for stop in plan.stops]
    lane = right + MARGIN + plan.lane * _LANE_DISTANCE
    return [lane] * (row[plan.targets[-1]] - row[plan.source] - 1)


def _ports(
    widths: Sequence[int],
    plans: list[_Plan],
    row: list[int],
    place: list[int],
    passes: list[list[int]],
) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """Where wires leave and enter boxes: straight below or above what they go to, if they can."""
    leaving: dict[int, list[int]] = {}
    entering: dict[int, list[tuple[int, int]]] = {}
    for number, plan in enumerate(plans):
        leaving.setdefault(plan.source, []).append(number)
        way = [place[plan.source], *passes[number]]
        for target in plan.targets:
            above = way[row[target] - 1 - row[plan.source]]
            entering.setdefault(target, []).append((above, number))
    starts = [0] * len(plans)
    for node, numbers in leaving.items():
        first = [passes[n][0] if passes[n] else place[plans[n].targets[0]] for n in numbers]
        goals = [place[node]] if len(numbers) == 1 else first
        for number, port in zip(numbers, _spread(goals, place[node], widths[node]), strict=True):
            starts[number] = port
    ends: list[list[tuple[int, int]]] = [[] for _ in plans]
    for node, found in entering.items():
        found.sort()
        ports = _spread([goal for goal, _ in found], place[node], widths[node])
        for (_, number), port in zip(found, ports, strict=True):
            ends[number].append((node, port))
    for entered in ends:
        entered.sort(key=lambda end: (row[end[0]], end[0]))
    return starts, ends


def _spread(goals: list[int], middle: int, width: int) -> list[int]:
    """Ports on a side of a box, near `goals`, in their order, and apart from each other."""
    half = max(0, width // 2 - _PORT_INSET)
    distance = _PORT_DISTANCE
    if len(goals) > 1:
        distance = min(distance, 2 * half // (len(goals) - 1))
    ranking = sorted(range(len(goals)), key=lambda i: (goals[i], i))
    ports = [0] * len(goals)
    reached = middle - half
    for i in ranking:
        ports[i] = max(reached, min(goals[i], middle + half))
        reached = ports[i] + distance
    reached = middle + half
    for i in reversed(ranking):
        ports[i] = min(ports[i], reached)
        reached = ports[i] - distance
    return ports


def _runs(passed: list[int]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for x in passed:
        if runs and runs[-1][0] == x:
            runs[-1] = (x, runs[-1][1] + 1)
        else:
            runs.append((x, 1))
    return tuple(runs)
