"""Pages to test with: a small one that has everything, and made-up residual networks."""

from __future__ import annotations

import difflib
import math
from dataclasses import replace

from dsgc.inspect.page_data import (
    Kind,
    PageData,
    PageEdge,
    PageFiring,
    PageLayer,
    PageNode,
    PageSource,
    PageStage,
)

__all__ = ["residual_page", "small_page"]

SHAPE = (4, 16, 8, 8)


def small_page() -> PageData:
    """Three stages of a network with one sparse layer: traced, analysed (unchanged), lowered."""
    first = _stage(
        "trace",
        (
            PageNode("x", "input", "input", shape=(4, 3, 8, 8), dtype="float32"),
            PageNode("first", "Conv2d", "dense", "first", shape=SHAPE, dtype="float32"),
            PageNode("relu", "ReLU", "other", "relu", shape=SHAPE, dtype="float32"),
            PageNode("second", "Conv2d", "dense", "second", shape=SHAPE, dtype="float32"),
            PageNode("add", "add", "other", shape=SHAPE, dtype="float32"),
            PageNode("output", "output", "output", shape=SHAPE),
        ),
        "x>first first>relu relu>second second>add relu>add add>output",
        before="",
    )
    analysed = PageStage(
        "choose_layers", first.nodes, first.edges, first.text, "", "Decides layer by layer."
    )
    lowered = _stage(
        "lower_to_packed",
        (
            first.nodes[0],
            PageNode("weight", "weight", "parameter", "first", shape=(16, 3, 3, 3)),
            first.nodes[1],
            first.nodes[2],
            PageNode("mask", "Selection", "selection", "second", mask_group="second"),
            PageNode(
                "second",
                "packed_conv2d",
                "sparse",
                "second",
                packed=True,
                mask_group="second",
                shape=SHAPE,
                dtype="float32",
                where="net.py:12",
                facts={"winners": "1 of 4"},
            ),
            PageNode("norm", "PackedBatchNorm", "norm", "second", True, "second", SHAPE, "float32"),
            PageNode("unpack", "unpack", "other", shape=SHAPE, dtype="float32"),
            first.nodes[4],
            first.nodes[5],
        ),
        "x>first weight>first first>relu relu>mask relu>second mask?second mask?norm "
        "second*norm norm*unpack unpack>add relu>add add>output",
        before=first.text,
    )
    firings = (
        PageFiring("By position", (), (), _wave(8, 8), "y", "x", "Of all images."),
        PageFiring("By class of input", ("cat", "dog"), tuple("abcd"), _wave(2, 4), "class"),
        PageFiring("Never run", (), (), ((math.nan, math.nan),)),
    )
    return PageData(
        "A small network",
        {"Machine": "two threads", "dsgc": "0.1.0"},
        (first, analysed, lowered),
        (
            PageLayer("first", False, {"time": "9.5 ms", "done": "1.2 M", "why": "first layer"}),
            PageLayer(
                "second",
                True,
                {"time": "0.9 s", "done": "900 k", "why": "it pays"},
                ("conv", "select"),
                firings,
            ),
            PageLayer("head", False, {"time": "10.0 ms", "done": "-", "why": ""}),
        ),
        (
            PageSource("conv", "TVMScript", "def conv():\n    pass  # <b>&amp;</b>\n"),
            PageSource("conv", "assembly", "vfmadd231ps zmm0, zmm1, [rsi]\n" * 500),
            PageSource("select", "TVMScript", "def select():\n    pass\n"),
        ),
    )


def residual_page(blocks: int, passes: int) -> PageData:
    """A network of `blocks` residual blocks of three convolutions, after `passes` passes.

    The passes before the middle one leave it dense, the others are lowered; each changes the
    facts of every seventh node. 37 blocks have about as many nodes as ResNet-152 has.
    """
    stages: list[PageStage] = []
    layers: dict[str, None] = {}
    for number in range(passes):
        lowered = number >= passes // 2
        nodes = [PageNode("x", "input", "input", shape=SHAPE, dtype="float32")]
        edges: list[str] = []
        last = "x"
        for block in range(blocks):
            begin = last
            for place in range(3):
                layer = f"layer{block}.conv{place}"
                layers[layer] = None
                last = _layer(nodes, edges, layer, last, lowered)
            nodes.append(PageNode(f"add{block}", "add", "other", shape=SHAPE, dtype="float32"))
            edges += [f"{last}>add{block}", f"{begin}>add{block}"]
            last = f"add{block}"
        nodes.append(PageNode("output", "output", "output"))
        edges.append(f"{last}>output")
        for place in range(number, len(nodes), 7):
            nodes[place] = replace(nodes[place], facts={"changed by": f"pass {number}"})
        before = stages[-1].text if stages else ""
        stages.append(_stage(f"pass_{number}", tuple(nodes), " ".join(edges), before))
    source = "".join(f"vfmadd231ps zmm{i % 32}, zmm1, [rsi + {i}]\n" for i in range(20_000))
    firings = tuple(
        PageFiring(title, (), (), _wave(14, 16), "y", "block") for title in ("One", "Two")
    )
    return PageData(
        "A residual network",
        {},
        tuple(stages),
        tuple(
            PageLayer(name, True, {"time": f"{len(name)} ms"}, ("conv",), firings)
            for name in layers
        ),
        (PageSource("conv", "assembly", source), PageSource("conv", "TVMScript", source[:9999])),
    )


def _layer(nodes: list[PageNode], edges: list[str], layer: str, last: str, lowered: bool) -> str:
    name = layer.replace(".", "_")

    def add(end: str, label: str, kind: Kind, inputs: str, packed: bool = False) -> None:
        nodes.append(
            PageNode(
                f"{name}{end}",
                label,
                kind,
                layer,
                packed and lowered,
                layer if lowered else "",
                SHAPE,
                "float32",
                "net.py:1",
            )
        )
        edges.extend(f"{one}{name}{end}" for one in inputs.split())

    value = "*" if lowered else ">"
    add("_weight", "weight", "parameter", "")
    if lowered:
        add("_select", "Selection", "selection", f"{last}>")
        add("_index", "getitem", "selection", f"{name}_select?")
        add("_rowptr", "getitem", "selection", f"{name}_select?")
        lists = f" {name}_index? {name}_rowptr?"
    else:
        lists = ""
    add("", "conv2d", "sparse" if lowered else "dense", f"{last}> {name}_weight>{lists}", True)
    add("_norm", "BatchNorm2d", "norm", f"{name}{value}{lists}", True)
    if lowered:
        for end in ("_value", "_scale", "_shift"):
            add(end, "getitem", "other", f"{name}_norm{value if end == '_value' else '>'}", True)
        lists += f" {name}_scale> {name}_shift>"
    add("_relu", "relu", "other", (f"{name}_value*" if lowered else f"{name}_norm>") + lists)
    return f"{name}_relu"


def _stage(name: str, nodes: tuple[PageNode, ...], edges: str, before: str) -> PageStage:
    """A stage from edges such as "a>b" (dense), "a*b" (packed) and "a?b" (selection)."""
    found = []
    for edge in edges.split():
        sign = next(character for character in ">*?" if character in edge)
        source, target = edge.split(sign)
        found.append(PageEdge(source, target, packed=sign == "*", selection=sign == "?"))
    text = "\n".join(f"%{one.name} = {one.label}[{one.layer}] {one.facts}" for one in nodes)
    changed = difflib.unified_diff(before.split("\n"), text.split("\n"), "a", "b", lineterm="")
    diff = "\n".join(changed) if before else ""
    return PageStage(name, nodes, tuple(found), text, diff, "Does what it is called.")


def _wave(rows: int, columns: int) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(0.2 + 0.2 * math.sin(row) * math.cos(column) for column in range(columns))
        for row in range(rows)
    )
