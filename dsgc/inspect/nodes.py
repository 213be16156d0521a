"""What a node of any of a model's graphs is: the facts that texts, pictures and analyses show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn

from dsgc.inspect.page_data import Kind
from dsgc.ops.masked import masked_conv2d, masked_linear
from dsgc.ops.normalization import MaskedBatchNorm, PackedBatchNorm
from dsgc.ops.recompute import Recompute, RecomputedConv2d
from dsgc.passes.choose_layers import is_layer
from dsgc.passes.insert_double_mask import mask_before
from dsgc.passes.patterns import batch_norm, module_of, shape_of
from dsgc.select import PackedSelection, Selector
from dsgc.tracing.blame import user_line
from dsgc.watch import label_of

__all__ = ["NodeFacts", "facts_of"]


@dataclass(frozen=True)
class NodeFacts:
    """What is known of a node.

    Attributes:
        name: in its graph.
        label: what it does, such as "conv2d".
        kind: what it is for the sparse network.
        layer: the layer it belongs to; "" before the first one.
        shape, dtype: of its value, as a dense tensor; None and "" if it is none.
        mask: the node that made the selection its value has; "" if it has none.
        packed: whether only the selected blocks of its value are stored.
        density: the expected part of its blocks that are selected; 1 without a selection.
        multiply_adds: of one sample, for a layer; expected ones if it is sparse.
        where: `file:line` of the user's code.
    """

    name: str
    label: str
    kind: Kind
    layer: str
    shape: tuple[int, ...] | None
    dtype: str
    mask: str
    packed: bool
    density: float
    multiply_adds: int
    where: str


def facts_of(graph: fx.Graph) -> dict[fx.Node, NodeFacts]:
    """The facts about every node of a graph after any pass."""
    densities = _densities(graph)
    layers: dict[fx.Node, str] = {}
    found: dict[fx.Node, NodeFacts] = {}
    for node in graph.nodes:
        first = next(iter(node.all_input_nodes), None)
        inherited = "" if first is None else layers[first]
        layers[node] = str(node.meta.get("layer", inherited))
        mask, packed = _mask(node)
        kind = _kind(node)
        dtype = node.meta.get("dtype")
        found[node] = NodeFacts(
            node.name,
            {"placeholder": "input", "output": "output"}.get(node.op) or label_of(node),
            kind,
            layers[node],
            shape_of(node),
            str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else "",
            mask,
            packed,
            densities.get(mask, 1.0) if mask else 1.0,
            _multiply_adds(node, densities.get(mask, 1.0)),
            user_line(node),
        )
    return found


def _kind(node: fx.Node) -> Kind:
    module = module_of(node)
    label = label_of(node)
    if node.op == "placeholder":
        return "input"
    if node.op in ("output", "get_attr"):
        return "output" if node.op == "output" else "parameter"
    if _makes_selection(node):
        return "selection"
    lowered = isinstance(node.target, torch._ops.OpOverload)
    if node.target in (masked_conv2d, masked_linear) or isinstance(module, RecomputedConv2d):
        return "sparse"
    if lowered and label == "conv2d":
        return "sparse"
    if is_layer(node) or (lowered and label in ("stem_conv2d", "dense_linear")):
        return "dense"
    if batch_norm(node) is not None or isinstance(module, (MaskedBatchNorm, PackedBatchNorm)):
        return "norm"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "norm"
    return "other"


def _makes_selection(node: fx.Node) -> bool:
    if isinstance(module_of(node), (Selector, PackedSelection)):
        return True
    source = node.args[0] if label_of(node) == "getitem" and node.args else None
    return isinstance(source, fx.Node) and _makes_selection(source)


def _mask(node: fx.Node) -> tuple[str, bool]:
    """The node that made the selection of a value, and whether the value is packed."""
    if "selected_by" in node.meta:
        return str(node.meta["selected_by"]), True
    # The semantic graph: dense tensors that are zero outside a mask.
    found = mask_before(node)
    return (found[0].name, False) if found is not None else ("", False)


def _densities(graph: fx.Graph) -> dict[str, float]:
    """The expected density of every selection, by the node that makes it (or its index)."""
    found: dict[str, float] = {}
    for node in graph.nodes:
        module = module_of(node)
        selector = module.selector if isinstance(module, PackedSelection) else module
        if isinstance(selector, Selector):
            density = selector.density
            if selector.settings.scope == "position":
                density = selector.winners / selector.blocks
            for one in (node, *node.users):
                found[one.name] = density
        if isinstance(node.target, torch._ops.OpOverload) and label_of(node) == "pool2d":
            before, kernel = found.get(getattr(node.args[1], "name", ""), 1.0), node.args[8]
            area = math.prod(cast(tuple[int, int], kernel))
            for one in node.users:
                found[one.name] = 1.0 - (1.0 - before) ** area
    return found


def _multiply_adds(node: fx.Node, density: float) -> int:
    decision = node.meta.get("decision")
    if decision is None or isinstance(module_of(node), (Recompute, PackedSelection)):
        return 0
    if not decision.sparse:
        return int(decision.macs)
    return int(decision.macs * decision.input_density * density)
