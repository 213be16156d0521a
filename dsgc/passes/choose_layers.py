"""Decide which convolutions and linear layers become sparse, and say why for each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dsgc.codegen.tiles import suits_few_rows
from dsgc.config import LayerSettings
from dsgc.passes.context import Context, LayerDecision
from dsgc.passes.geometry import Geometry, conv_padding, search_cost
from dsgc.passes.layer_cost import WORTH, Cost, inference_cost, layer_cost, row_cost
from dsgc.passes.patterns import (
    batch_norm,
    elementwise,
    extra_code,
    is_flatten,
    module_of,
    pool,
    shape_of,
)
from dsgc.tracing.blame import user_line

__all__ = ["choose_layers", "final_layers", "find_whole_map", "is_layer"]

_FEW_CHANNELS = 4
_TRIFLE = 0.05  # of the model's work, below which a linear layer at its end stays dense
Work = dict[bool, int]  # multiply-adds of linear layers (True) and of convolutions
_OTHER_LAYERS = (
    nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear,
)  # fmt: skip
_FUNCTIONS: dict[Any, str] = {
    F.conv1d: "conv1d", F.conv2d: "conv2d", F.conv3d: "conv3d", F.linear: "linear",
}  # fmt: skip
_SUPPORTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_layer(node: fx.Node) -> bool:
    """Whether `node` is a convolution or linear layer, called as a module or as a function."""
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return isinstance(module_of(node), (nn.Conv2d, nn.Linear, *_OTHER_LAYERS))


def choose_layers(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Mark every layer node with its decision (`node.meta["decision"]`).

    Needs shapes. The first graph of a model decides; later ones only look the decisions up.
    """
    chooser = _Chooser(gm, context)
    densities = chooser.densities
    calls: dict[str, int] = {}
    for node in gm.graph.nodes:
        densities[node] = _density(node, densities)
        if not is_layer(node):
            continue
        name = str(node.target) if node.op == "call_module" else node.name
        calls[name] = calls.get(name, 0) + 1
        site = name if calls[name] == 1 else f"{name}#{calls[name]}"
        if site not in context.decisions:
            context.decisions[site] = chooser.decide(node, name, site)
        decision = context.decisions[site]
        module = module_of(node)
        if decision.sparse and module is not None and (extra := extra_code(module)):
            # It came later: the layer is dense while it has that.
            decision = replace(decision, sparse=False, reason=extra)
        if decision.sparse and _has_changed(node, decision, densities):
            reason = "its stride, padding or dilation is another than when it was chosen"
            decision = replace(decision, sparse=False, reason=reason)
        node.meta["decision"] = decision
        if decision.sparse and decision.settings is not None:
            densities[node] = 1.0 - decision.settings.sparsity
        else:
            densities[node] = 1.0
    return gm


def _has_changed(node: fx.Node, decision: LayerDecision, densities: dict[fx.Node, float]) -> bool:
    """Whether a convolution is no longer what its selector was made for."""
    if not isinstance(module_of(node), nn.Conv2d) or decision.geometry is None:
        return False
    return _geometry(node, densities)[0] != decision.geometry


def final_layers(gm: fx.GraphModule) -> set[fx.Node]:
    """The layers whose result reaches the output without another layer in between."""
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    work = [node for node in gm.graph.nodes if node.op == "output"]
    while work:
        node = work.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_layer(node):
            found.add(node)
        else:
            work.extend(node.all_input_nodes)
    return found


def _density(node: fx.Node, densities: dict[fx.Node, float]) -> float:
    """Estimated part of non-zero blocks in what `node` reads, or makes if it is no layer."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return 1.0
    source = densities.get(node.args[0], 1.0)
    if is_layer(node) or elementwise(node) or batch_norm(node) is not None or is_flatten(node):
        return source
    pooling = pool(node)
    return 1.0 - (1.0 - source) ** pooling.area if pooling is not None else 1.0


@dataclass(frozen=True)
class _Candidate:
    """A layer that can be sparse, if it pays: both decisions, and what the cost depends on."""

    sparse: LayerDecision
    dense: LayerDecision
    geometry: Geometry
    settings: LayerSettings
    search: float
    rows: int
    few_rows: bool
    inference: bool

    @property
    def made(self) -> float:
        """Density of the output."""
        return 1.0 - self.settings.sparsity

    def cost(self, read: float) -> Cost:
        """Relative to the dense layer, for an input of density `read`."""
        what = (self.geometry, self.search, read, self.made, self.rows)
        block = self.settings.block
        if self.inference:
            cost = inference_cost(*what, block, self.few_rows)
        else:
            cost = row_cost(*what) if self.few_rows else layer_cost(*what, block)
        product = self.dense.kind == "Linear" and not self.few_rows
        return cost.against_products() if product else cost


class _Chooser:
    """Decides about the layers of one graph, one after the other."""

    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.context = context
        self.final = final_layers(gm) if context.last_part else set()
        # Other parts of the model that ran before count as well.
        self.whole = _whole_work(gm)
        for one in context.decisions.values():
            self.whole[one.kind == "Linear"] += one.macs
        self.densities: dict[fx.Node, float] = {}

    def decide(self, node: fx.Node, name: str, site: str) -> LayerDecision:
        found = self.candidate(node, name, site)
        if isinstance(found, LayerDecision):
            return found
        cost = found.cost(self.densities[node])
        if sum(cost) < WORTH:
            return found.sparse
        if reader := self.worth_it_together(node, found, sum(cost)):
            return replace(found.sparse, reason=f"it pays together with {reader!r}, which reads it")
        what = "it does not pay in inference" if found.inference else "it does not pay"
        return replace(found.dense, reason=f"{what}: {cost}", too_dear=True)

    def worth_it_together(self, node: fx.Node, first: _Candidate, cost: float) -> str:
        """The layer that alone reads `node`, if both pay together: sparse, it reads less."""
        reader, density = _only_reader(node, first.made)
        if reader is None or reader.op != "call_module":
            return ""
        name = str(reader.target)
        if name in self.context.decisions:
            return ""
        second = self.candidate(reader, name, name)
        if isinstance(second, LayerDecision):
            return ""
        behind_sparse, behind_dense = sum(second.cost(density)), sum(second.cost(1.0))
        macs = first.dense.macs, second.dense.macs
        both = cost * macs[0] + behind_sparse * macs[1]
        otherwise = macs[0] + (behind_dense if behind_dense < WORTH else 1.0) * macs[1]
        return name if behind_sparse < WORTH and both < WORTH * otherwise else ""

    def candidate(self, node: fx.Node, name: str, site: str) -> _Candidate | LayerDecision:
        """What is to be decided about a layer, or the decision where nothing is."""
        module, density = module_of(node), self.densities.get(node, 1.0)
        kind = type(module).__name__ if module is not None else _FUNCTIONS[node.target]
        dense = LayerDecision(
            name, site, kind, False, "", input_density=density, where=user_line(node)
        )
        if self.context.decided:
            return replace(dense, reason="it did not run when the layers were chosen")
        geometry, obstacle = _geometry(node, self.densities)
        if geometry is None:
            return replace(dense, reason=obstacle)
        pixels, positions = _positions(node, geometry)
        dense = replace(dense, macs=positions * geometry.window * geometry.out_channels)
        rule = self.context.config.rule_for(name)
        if rule is not None and rule.dense:
            return replace(dense, reason=f"rule {rule.text!r} keeps it dense")
        settings = self.context.config.settings_for(name, geometry.out_channels)
        search, cost = search_cost(settings, geometry, pixels, positions)
        chosen = replace(dense, search_macs=search, settings=settings, geometry=geometry)
        saved = self.context.saved.get(site)
        if rule is not None and rule.sparsity is not None:
            chosen = replace(chosen, sparse=True, reason=f"rule {rule.text!r} asks for it")
            return _as_saved(chosen, saved) if saved is not None and saved.sparse else chosen
        if saved is not None:
            return _as_saved(chosen if saved.sparse else dense, saved)
        block = settings.block
        refusal = _refusal(chosen, geometry, block, node in self.final)
        refusal = refusal or _trifle(chosen, positions, self.whole)
        if refusal:
            return replace(dense, reason=refusal)
        shape = shape_of(node)
        rows = positions * (shape[0] if shape else 1)
        few = kind == "Linear" and suits_few_rows(
            rows, geometry.window, geometry.out_channels, block
        )
        pays = replace(chosen, sparse=True, reason="it pays")
        inference = not self.context.model.training
        return _Candidate(pays, dense, geometry, settings, cost, rows, few, inference)


def _only_reader(node: fx.Node, density: float) -> tuple[fx.Node | None, float]:
    """The one layer that reads `node`, with nothing in between that would unpack it, and the
    density that it reads if that of `node` is `density`.
    """
    while len(node.users) == 1:
        reader = next(iter(node.users))
        if not reader.args or reader.args[0] is not node:
            break
        if is_layer(reader):
            return reader, density
        if not (elementwise(reader) or batch_norm(reader) is not None or pool(reader) is not None):
            break
        density = _density(reader, {node: density})
        node = reader
    return None, 1.0


def _as_saved(layer: LayerDecision, saved: LayerDecision) -> LayerDecision:
    """A layer that can be sparse as the checkpoint has it; multiply-adds weigh in its winners."""
    geometry = saved.geometry if layer.kind == "Linear" and saved.sparse else layer.geometry
    return replace(
        saved,
        reason=layer.reason or saved.reason,
        settings=layer.settings,
        geometry=geometry,
        where=layer.where,
    )


def _refusal(layer: LayerDecision, geometry: Geometry, block: int, final: bool) -> str:
    """Why a possible layer is kept dense whatever it costs; empty if it is not."""
    if layer.blocks < 2:
        return f"{geometry.out_channels} output channels are fewer than 2 blocks of {block}"
    if layer.kind != "Linear" and geometry.in_channels <= _FEW_CHANNELS:
        return f"a first convolution: it reads {geometry.in_channels} channels only"
    return "it is the final classifier" if final else ""


def _trifle(layer: LayerDecision, positions: int, whole: Work) -> str:
    """Why it is not worth its cost in accuracy to make a layer sparse; empty if it is.

    A linear layer at the end of a convolutional network decides with one position a sample. Left
    dense it learns much faster (docs/accuracy.md), for a small part of the model's work.
    """
    share = layer.macs / max(1, sum(whole.values()))
    if layer.kind != "Linear" or positions != 1 or share >= _TRIFLE:
        return ""
    if whole[False] < whole[True]:
        return ""  # the network is made of linear layers
    return f"it does {share:.1%} of the model's work: being sparse would cost more than it saves"


def _whole_work(gm: fx.GraphModule) -> Work:
    """Multiply-adds of one sample in the layers of a graph that are modules, linear or not."""
    total: Work = {False: 0, True: 0}
    for node in gm.graph.nodes:
        module, shape = module_of(node), shape_of(node)
        if shape is None or not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        places = shape[2:] if isinstance(module, nn.Conv2d) else shape[1:-1]
        total[isinstance(module, nn.Linear)] += math.prod(places) * _weights(module)
    return total


def _weights(layer: nn.Conv2d | nn.Linear) -> int:
    """How many a layer has, without asking a parametrization to compute them."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return layer.in_channels // layer.groups * layer.out_channels * math.prod(layer.kernel_size)


def _positions(node: fx.Node, geometry: Geometry) -> tuple[int, int]:
    """Input pixels and output positions of one sample."""
    made, source = shape_of(node), shape_of(node.args[0])
    if made is None or source is None:
        return 1, 1
    if isinstance(module_of(node), nn.Conv2d):
        return math.prod(source[2:]), math.prod(made[2:])
    if geometry.map_size is not None:
        return math.prod(geometry.map_size[1:]), 1
    rows = math.prod(made[1:-1])
    return rows, rows


def _geometry(node: fx.Node, densities: dict[fx.Node, float]) -> tuple[Geometry | None, str]:
    """The geometry of a layer that can be sparse, or why it cannot."""
    module = module_of(node)
    if module is None:
        return None, "it is called as a function (only modules can be sparse)"
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or isinstance(module, nn.ConvTranspose2d):
        return None, f"{type(module).__name__} is not supported (Conv2d and Linear are)"
    if extra := extra_code(module):
        return None, extra
    if "weight" not in module._parameters or module.weight is None:
        return None, "its weight is computed (a parametrization)"
    if len(node.args) != 1 or node.kwargs or shape_of(node.args[0]) is None:
        return None, "it is not called with one tensor"
    source = shape_of(node.args[0]) or ()
    if node.meta.get("dtype") not in _SUPPORTED:
        return None, f"its dtype is {node.meta.get('dtype')}"
    if isinstance(module, nn.Linear):
        if len(source) < 2:
            return None, "its input is one row without a batch"
        map_size = find_whole_map(node, densities)
        if map_size is None:
            return Geometry(module.in_features, module.out_features), ""
        channels, *window = map_size
        kernel = (window[0], window[1])
        return Geometry(channels, module.out_features, kernel, map_size=map_size), ""
    return _conv_geometry(module, source)


def _conv_geometry(conv: nn.Conv2d, source: tuple[int, ...]) -> tuple[Geometry | None, str]:
    if conv.groups != 1:
        return None, f"it has {conv.groups} groups (grouped convolutions stay dense)"
    if conv.padding_mode != "zeros":
        return None, f"its padding mode is {conv.padding_mode!r} (only zeros are supported)"
    padding = conv_padding(conv)
    if padding is None:
        return None, "its 'same' padding is uneven"
    if len(source) != 4:
        return None, "its input has no batch dimension"
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    return Geometry(
        conv.in_channels,
        conv.out_channels,
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        padding,
        (dilation[0], dilation[1]),
    ), ""


def find_whole_map(node: fx.Node, densities: dict[fx.Node, float]) -> tuple[int, int, int] | None:
    """(C, H, W) if a linear layer reads a flattened map that a sparse layer made."""
    flat = node.args[0]
    if not isinstance(flat, fx.Node) or not is_flatten(flat):
        return None
    source = flat.args[0]
    shape = shape_of(source)
    if shape is None or not isinstance(source, fx.Node) or densities.get(source, 1.0) >= 1.0:
        return None
    return (shape[1], shape[2], shape[3]) if shape[2] * shape[3] > 1 else None
