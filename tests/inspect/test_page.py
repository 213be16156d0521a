"""The text of an inspection page, and the layout of its graphs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsgc.inspect.layout import BOX_HEIGHT, CycleError, Layout, Line, Style, lay_out
from dsgc.inspect.layout_order import count_crossings, order_rows
from dsgc.inspect.page_data import (
    PageData,
    PageDataError,
    PageEdge,
    PageFiring,
    PageLayer,
    PageNode,
    PageStage,
)
from dsgc.inspect.render_page import render_page
from tests.inspect.pages import residual_page, small_page

EMPTY = PageData("Nothing", {}, (), ())


def embedded(page: str) -> Any:
    """The data that a page embeds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def part(packed: dict[str, Any]) -> Any:
    """What a part of the data holds, unpacked if it is compressed."""
    if "plain" in packed:
        return packed["plain"]
    return json.loads(zlib.decompress(base64.b64decode(packed["deflate"])))


def with_stage(*nodes: PageNode, edges: tuple[PageEdge, ...] = ()) -> PageData:
    return replace(EMPTY, stages=(PageStage("only", nodes, edges),))


# ---- the document


@given(st.text(st.characters(codec=None)))
def test_any_name_comes_back_and_cannot_end_the_script(name: str) -> None:
    name += "</script><!--<script>'\"&\u2028{{script}}\ud800"
    node = PageNode(name, name, "dense", name, facts={name: name}, mask_group=name)
    layer = PageLayer(name, True, {name: name})
    stage = PageStage(name, (node,), (), name, name, name)
    page = render_page(PageData(name, {name: name}, (stage,), (layer,)))
    content = embedded(page)
    assert content["title"] == name
    assert content["facts"] == [[name, name]]
    assert content["groups"] == [name]
    assert part(content["texts"][0]) == name
    assert part(content["nodes"])[0][:4] == [name, name, "dense", name]
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    page.encode("utf-8")


def test_the_title_is_text() -> None:
    page = render_page(replace(EMPTY, title="<b>&amp;\u00e9</b>"))
    found = re.search(r"<title>(.*?) · dsgc inspect</title>", page)
    assert found is not None
    assert "<" not in found[1]
    assert html.unescape(found[1]) == "<b>&amp;\u00e9</b>"


def test_the_policy_allows_the_one_script_and_the_one_style_sheet_only() -> None:
    page = render_page(small_page())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy[1]
    for name, start in (("script-src", "<script>"), ("style-src", "<style>")):
        content = page.split(start)[1].split(start.replace("<", "</"))[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render_page(small_page())
    page = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://", page)
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert not re.findall(r"@import|url\(", page)
    assert not re.findall(
        r"\b(eval|Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write)\b", page
    )


def test_equal_data_give_an_equal_text() -> None:
    assert render_page(small_page()) == render_page(small_page())
    program = (
        "import hashlib, sys\n"
        "from dsgc.inspect.render_page import render_page\n"
        "from tests.inspect.pages import small_page\n"
        "print(hashlib.sha256(render_page(small_page()).encode()).hexdigest())\n"
        "print(sorted({'torch', 'tvm', 'numpy', 'networkx'} & set(sys.modules)))\n"
    )
    expected = hashlib.sha256(render_page(small_page()).encode()).hexdigest()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".:runtime"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split("\n")[:2] == [expected, "[]"]


def test_what_stages_share_is_kept_once() -> None:
    data = small_page()
    content = embedded(render_page(data))
    graphs = [stage["graph"] for stage in content["stages"]]
    assert graphs == [0, 0, 1]
    assert len(content["graphs"]) == len(content["layouts"]) == 2
    assert len(part(content["nodes"])) == len(
        {json.dumps(vars(node)) for stage in data.stages for node in stage.nodes}
    )
    assert [stage["text"] for stage in content["stages"]][:2] == [0, 0]


def test_stages_that_differ_in_facts_only_share_their_layout() -> None:
    first = small_page().stages[0]
    other = replace(first.nodes[1], facts={"decision": "it pays"})
    second = replace(first, nodes=(first.nodes[0], other, *first.nodes[2:]))
    content = embedded(render_page(replace(EMPTY, stages=(first, second))))
    assert [stage["graph"] for stage in content["stages"]] == [0, 1]
    assert [graph["layout"] for graph in content["graphs"]] == [0, 0]
    assert len(part(content["nodes"])) == len(first.nodes) + 1


def test_a_large_page_takes_a_fraction_of_its_data() -> None:
    data = residual_page(20, 6)
    assert len(render_page(data)) < len(json.dumps(asdict(data))) / 5


def test_mask_groups_come_in_the_order_of_layers() -> None:
    nodes = [PageNode(f"n{i}", "op", "sparse", mask_group=f"g{i}") for i in (2, 0, 3)]
    layers = tuple(PageLayer(f"g{i}", True, {}) for i in range(3))
    data = replace(with_stage(*nodes), layers=layers)
    assert embedded(render_page(data))["groups"] == ["g0", "g2", "g3"]


def test_unknown_fractions_become_null() -> None:
    firing = PageFiring("Title", ("a",), ("0", "1", "2"), ((0.123456, float("nan"), 1.0),))
    data = replace(EMPTY, layers=(PageLayer("layer", True, {}, (), (firing,)),))
    found = embedded(render_page(data))["layers"][0]["firings"][0]
    assert part(found["values"]) == [0.1235, None, 1.0]


@pytest.mark.parametrize(
    "data",
    [
        EMPTY,
        with_stage(),
        with_stage(PageNode("alone", "op", "other")),
        replace(EMPTY, layers=(PageLayer("layer", True, {}, (), (PageFiring("t", (), (), ()),)),)),
    ],
)
def test_a_page_about_little_can_be_rendered(data: PageData) -> None:
    assert embedded(render_page(data))["title"] == "Nothing"


def _one_firing(firing: PageFiring) -> PageData:
    return replace(EMPTY, layers=(PageLayer("conv1", True, {}, (), (firing,)),))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            with_stage(PageNode("a", "op", "other"), edges=(PageEdge("a", "b"),)),
            ["only", "'a'", "'b'"],
        ),
        (with_stage(PageNode("a", "op", "other"), PageNode("a", "op", "other")), ["two", "'a'"]),
        (
            with_stage(
                PageNode("start", "op", "other"),
                PageNode("a", "op", "other"),
                PageNode("b", "op", "other"),
                edges=(PageEdge("start", "a"), PageEdge("a", "b"), PageEdge("b", "a")),
            ),
            ["cycle", "'a'"],
        ),
        (
            with_stage(PageNode("a", "op", "other"), edges=(PageEdge("a", "a"),)),
            ["cycle", "'a'"],
        ),
        (
            replace(EMPTY, layers=(PageLayer("conv1", True, {}, ("missing",)),)),
            ["'conv1'", "'missing'"],
        ),
        (replace(EMPTY, layers=(PageLayer("conv1", True, {}),) * 2), ["two", "'conv1'"]),
        (_one_firing(PageFiring("t", (), (), ((0.5, 0.5), (0.5,)))), ["'t'", "'conv1'", "2", "1"]),
        (_one_firing(PageFiring("t", ("a",), (), ((0.5,), (0.5,)))), ["2 rows", "1 labels"]),
        (_one_firing(PageFiring("t", (), ("a",), ((0.5, 0.5),))), ["2 columns", "1 labels"]),
        (_one_firing(PageFiring("t", (), (), ((1.5,),))), ["1.5", "between 0 and 1"]),
    ],
)
def test_data_that_contradict_themselves_are_refused(data: PageData, words: list[str]) -> None:
    with pytest.raises(PageDataError) as caught:
        render_page(data)
    for word in words:
        assert word in str(caught.value)


# ---- the layout


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[int], list[Line], frozenset[int]]:
    """A graph without cycles: widths, edges in any order, and some of the sources as inputs."""
    count = draw(st.integers(1, 30))
    widths = draw(st.lists(st.integers(20, 240), min_size=count, max_size=count))
    names = draw(st.permutations(range(count)))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    styles: st.SearchStrategy[Style] = st.sampled_from(["dense", "packed", "selection"])
    found = draw(st.lists(st.tuples(pairs, styles), max_size=70))
    lines = [Line(names[min(pair)], names[max(pair)], s) for pair, s in found if len(set(pair)) > 1]
    sources = set(range(count)) - {line.target for line in lines}
    inputs = draw(st.sets(st.sampled_from(sorted(sources))))
    return widths, lines, frozenset(inputs)


def passes(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Every row that a wire passes, and where: (number of the wire, row, x)."""
    for number, wire in enumerate(layout.wires):
        row = layout.row[wire.source]
        for x, count in wire.bends:
            for _ in range(count):
                row += 1
                yield number, row, x


def check_layout(widths: list[int], lines: list[Line], layout: Layout) -> None:
    """All that a layout promises."""
    assert len(layout.x) == len(layout.row) == len(widths)
    assert all(b - a > BOX_HEIGHT for a, b in pairwise(layout.tops))
    assert layout.height > layout.tops[-1] + BOX_HEIGHT
    boxes: dict[int, list[tuple[float, float]]] = {}
    for x, row, width in zip(layout.x, layout.row, widths, strict=True):
        left, right = x - width / 2, x + width / 2
        assert 0 < left < right < layout.width
        boxes.setdefault(row, []).append((left, right))
    assert sorted(boxes) == list(range(len(layout.tops)))
    for found in boxes.values():
        assert all(b[0] - a[1] > 5 for a, b in pairwise(sorted(found)))
    for line in lines:
        assert layout.row[line.source] < layout.row[line.target]
    drawn = [
        Line(wire.source, target, wire.style) for wire in layout.wires for target, _ in wire.ends
    ]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) == set(lines)
    for wire in layout.wires:
        assert abs(wire.start - layout.x[wire.source]) <= widths[wire.source] / 2
        for target, x in wire.ends:
            assert abs(x - layout.x[target]) <= widths[target] / 2
        last = max(layout.row[target] for target, _ in wire.ends)
        assert sum(count for _, count in wire.bends) == last - layout.row[wire.source] - 1
    taken: dict[tuple[int, int], int] = {}
    for number, row, x in passes(layout):
        assert 0 < x < layout.width
        assert all(x < left or x > right for left, right in boxes[row])
        assert taken.setdefault((row, x), number) == number


@given(graphs())
def test_boxes_stand_apart_and_no_edge_runs_through_one(
    graph: tuple[list[int], list[Line], frozenset[int]],
) -> None:
    widths, lines, inputs = graph
    layout = lay_out(widths, lines, inputs)
    check_layout(widths, lines, layout)
    assert layout == lay_out(widths, lines, inputs)


def test_a_graph_full_of_long_edges_is_laid_out_too() -> None:
    count = 700
    step = 7919
    lines = [Line(i, i + 1) for i in range(count - 1)]
    lines += [Line(i, i + 1 + i * step % (count - i - 1), "selection") for i in range(count - 1)]
    widths = [100 + i % 90 for i in range(count)]
    layout = lay_out(widths, lines)
    check_layout(widths, lines, layout)
    right = max(x + width / 2 for x, width in zip(layout.x, widths, strict=True))
    assert any(x > right for _, _, x in passes(layout)), "no edge runs beside the graph"


def style_of(edge: PageEdge) -> Style:
    if edge.selection:
        return "selection"
    return "packed" if edge.packed else "dense"


def test_the_way_of_the_data_is_straight() -> None:
    page = residual_page(6, 2)
    for stage in page.stages:
        number = {node.name: i for i, node in enumerate(stage.nodes)}
        lines = [
            Line(number[edge.source], number[edge.target], style_of(edge)) for edge in stage.edges
        ]
        layout = lay_out([150] * len(number), lines, frozenset([number["x"]]))
        ways = [name for name in number if re.fullmatch(r"x|add\d|layer\d_conv\d(_norm)?", name)]
        assert len({layout.x[number[name]] for name in ways}) == 1
        parameters = [node.name for node in stage.nodes if node.kind == "parameter"]
        for name in parameters:
            reader = number[name.removesuffix("_weight")]
            assert layout.row[number[name]] == layout.row[reader] - 1


def test_a_tree_has_no_crossings() -> None:
    lines = [Line((i - 1) // 2, i) for i in range(63, 0, -1)]
    layout = lay_out([60] * 64, lines)
    ends = sorted(
        (layout.row[wire.source], layout.x[wire.source], x)
        for wire in layout.wires
        for _, x in wire.ends
    )
    assert all(a[2] < b[2] for a, b in pairwise(ends) if a[0] == b[0])


def test_a_cycle_is_named() -> None:
    with pytest.raises(CycleError) as caught:
        lay_out([50] * 3, [Line(0, 1), Line(1, 2), Line(2, 1)])
    assert caught.value.node == 1


def test_no_node_no_drawing() -> None:
    assert lay_out([], []) == Layout(0, 0, (), (), (), ())


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(7, 13)), max_size=25, unique=True))
def test_crossings_are_counted(segments: list[tuple[int, int]]) -> None:
    rows = [list(range(7)), list(range(7, 14))]
    below: list[list[int]] = [[] for _ in range(14)]
    for upper, lower in segments:
        below[upper].append(lower)
    place = [*range(7), *range(7)]
    pairs = [(a, b) for i, a in enumerate(segments) for b in segments[:i]]
    expected = sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs)
    assert count_crossings(rows, below, place) == expected
    ordered = order_rows(rows, segments, 14)
    assert [sorted(row) for row in ordered] == rows
    for row in ordered:
        for position, vertex in enumerate(row):
            place[vertex] = position
    assert count_crossings(ordered, below, place) <= expected


@pytest.mark.parametrize("make", [small_page, lambda: residual_page(3, 2)])
def test_real_pages_are_laid_out_as_promised(make: Callable[[], PageData]) -> None:
    data = make()
    content = embedded(render_page(data))
    for stage, shown in zip(data.stages, content["stages"], strict=True):
        packed = content["graphs"][shown["graph"]]
        layout = part(content["layouts"][packed["layout"]])
        assert len(part(packed["nodes"])) == len(layout["x"]) == len(stage.nodes)
        ends = sum(len(wire[4]) // 2 for wire in layout["wires"])
        assert ends == len(set(stage.edges))
