"""Rewrite sparse layers: a selector finds the mask, then a masked convolution or linear layer."""

from __future__ import annotations

import re
from typing import Any

from torch import fx

from dsgc.errors import VerificationError
from dsgc.ops.masked import masked_conv2d, masked_linear
from dsgc.passes.context import Context, LayerDecision
from dsgc.passes.patterns import is_flatten, module_of, shape_of

__all__ = ["insert_selection", "selector_target"]


_CALL = re.compile(r"__call(\d+)$")
_ESCAPES = str.maketrans({"_": "_u", ".": "_d", "#": "_n"})


def selector_target(site: str) -> str:
    """Where the selector of a layer lives: `dsgc_selectors.` and a key made of the site.

    The key is the site without dots, `a__b` for `a.b` and `a__call2` for `a#2`. A site that cannot
    be read back from that (a layer that is called `a__b` itself) is spelt out behind four
    underscores, which no other key has: no two sites share a selector.
    """
    key = site.replace(".", "__").replace("#", "__call")
    if _CALL.sub(r"#\1", key).replace("__", ".") != site:
        key = "____" + site.translate(_ESCAPES)
    return f"dsgc_selectors.{key}"


def insert_selection(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """`y = layer(x)` becomes `mask = selector(x); y = masked_layer(x, weight, bias, mask, ...)`."""
    for node in list(gm.graph.nodes):
        decision = node.meta.get("decision")
        if decision is not None and decision.sparse:
            _rewrite(gm, node, decision, context)
    gm.recompile()
    return gm


def _rewrite(gm: fx.GraphModule, node: fx.Node, decision: LayerDecision, context: Context) -> None:
    settings, geometry = decision.settings, decision.geometry
    module = module_of(node)
    if settings is None or geometry is None or module is None:
        raise VerificationError(f"{decision.site}: a sparse layer without settings")
    target = selector_target(decision.site)
    gm.add_submodule(target, context.make_selector(decision))
    graph, name = gm.graph, node.name
    with graph.inserting_before(node):
        x = node.args[0]
        source = x if geometry.map_size is None else _whole_map(graph, x, geometry.map_size, name)
        mask = graph.create_node("call_module", target, (source,), name=f"{name}_mask")
        mask.meta["selects_for"] = decision
        weight = graph.create_node("get_attr", f"{node.target}.weight", name=f"{name}_weight")
        bias = None
        if module.bias is not None:
            bias = graph.create_node("get_attr", f"{node.target}.bias", name=f"{name}_bias")
    for made in (mask, weight, bias):
        if made is not None:
            made.stack_trace = node.stack_trace
            made.meta["layer"] = decision.site
    node.op = "call_function"
    if decision.kind == "Linear":
        node.target = masked_linear
        node.args = (x, weight, bias, mask, settings.block)
        return
    node.target = masked_conv2d
    window = (geometry.stride, geometry.padding, geometry.dilation)
    node.args = (x, weight, bias, mask, settings.block, *window)


def _whole_map(graph: fx.Graph, x: Any, map_size: tuple[int, int, int], name: str) -> fx.Node:
    """The map that was flattened into `x`; selection of a whole-map layer works on it."""
    if isinstance(x, fx.Node) and is_flatten(x):
        source = x.args[0]
        shape = shape_of(source)
        if isinstance(source, fx.Node) and shape is not None and shape[1:] == map_size:
            return source
    # Another image size with the same number of inputs: the selector keeps its own map.
    made = graph.create_node("call_method", "reshape", (x, (-1, *map_size)), name=f"{name}_map")
    made.meta["shape"] = ((shape_of(x) or (0,))[0], *map_size)
    return made
