"""Fold batch norms into the layers before them: what is exported needs no scales and shifts."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsgc.ops.normalization import PackedBatchNorm
from dsgc.ops.recompute import RecomputedConv2d
from dsgc.passes.patterns import batch_norm, layer_module, module_of, remove_dead
from dsgc.programs.recognise import own_operator

__all__ = ["fold_norms"]

Parameters = tuple[Tensor, Tensor]

_WITHOUT_AFFINE = {"affine": "identity", "affine_relu": "relu"}
# Where operators take their weight; the bias comes behind it.
_WEIGHT_AT = {"conv2d": 7, "stem_conv2d": 1, "dense_linear": 1}


def fold_norms(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a lowered graph, for eval mode, in which layers do what batch norms did.

    A norm is folded if it alone reads what a convolution or linear layer makes: rows of the weight
    are scaled, and the shift goes into the bias. Under a mask that is exact up to rounding, since
    a neuron that was not computed stays zero on both sides of the norm. A norm behind a ReLU, one
    whose layer has another reader, and one that makes weights overflow stay as they are.

    Selectors are left alone: they search with the layer's own weight and its norm.
    """
    nodes = fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    folded = fx.GraphModule(graph, nodes, class_name="FoldedGraph")
    for node in list(nodes.nodes):
        found = _norm_of(node)
        if found is None:
            continue
        norm, layer = found
        weight, bias = _parameters(layer)
        made = None if weight is None else _folded(weight, bias, norm)
        if made is not None:
            _give(layer, made, folded)
            _remove(node, layer)
    remove_dead(folded)  # weights that were folded into others
    nodes.lint()
    folded.recompile()
    return folded


def _norm_of(node: fx.Node) -> tuple[nn.modules.batchnorm._NormBase, fx.Node] | None:
    """The norm that a node is, and the node that it alone reads; None if it cannot be folded."""
    module = module_of(node)
    norm: nn.modules.batchnorm._NormBase | None = batch_norm(node)
    if isinstance(module, PackedBatchNorm):
        after_relu = bool(node.args[4])
        norm = None if after_relu or not _only_activations(node) else module.bn
    layer = node.args[0] if node.args else None
    if norm is None or not isinstance(layer, fx.Node) or len(layer.users) != 1:
        return None
    return None if norm.training else (norm, layer)


def _only_activations(norm: fx.Node) -> bool:
    """Whether a packed norm's scale and shift are read as parts of activations alone."""
    if not all(item.target is operator.getitem for item in norm.users):
        return False
    scales = [item for item in norm.users if item.args[1] == 1]
    return all(scale in reader.args for scale in scales for reader in scale.users)


def _parameters(layer: fx.Node) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a node that is a layer; no weight if it is none, or they are computed."""
    dense = _dense_layer(layer)
    if dense is not None:
        return dense.weight, dense.bias
    at = _weight_at(layer)
    if at is None:
        return None, None
    weight, bias = layer.args[at : at + 2]
    values = _constant(weight), _constant(bias)
    known = values[0] is not None and (bias is None or values[1] is not None)
    return values if known else (None, None)


def _dense_layer(node: fx.Node) -> nn.Conv2d | nn.Linear | None:
    """The plain convolution or linear layer that a node calls."""
    module = layer_module(node, (nn.Conv2d, nn.Linear))
    if isinstance(module, nn.Conv2d):
        own = type(module)._conv_forward is not nn.Conv2d._conv_forward
        return None if own or module.padding_mode != "zeros" else module
    return module if isinstance(module, nn.Linear) else None


def _weight_at(layer: fx.Node) -> int | None:
    if isinstance(module_of(layer), RecomputedConv2d):
        return 1 + _WEIGHT_AT["conv2d"]
    return _WEIGHT_AT.get(own_operator(layer) or "")


def _constant(value: object) -> Tensor | None:
    """The tensor that a node fetches from the model, or a reshaped one."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        found = operator.attrgetter(str(value.target))(value.graph.owning_module)
        return found if isinstance(found, Tensor) else None
    if value.op == "call_method" and value.target == "reshape":
        inner = _constant(value.args[0])
        return None if inner is None else inner.reshape(*value.args[1:])  # type: ignore[arg-type]
    return None


@torch.no_grad()
def _folded(
    weight: Tensor, bias: Tensor | None, norm: nn.modules.batchnorm._NormBase
) -> Parameters | None:
    """Weight and bias of a layer that also normalises, computed in float64 and rounded once.

    None if the norm has no statistics of its own, or if they would not be finite.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return None
    scale = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if bias is not None:
        shift = shift + bias.double() * scale
    rows = (weight.double() * scale.view(-1, *(1,) * (weight.dim() - 1))).float()
    # Processors are slow on numbers this small, and a channel may be as good as off.
    rows = rows.masked_fill(rows.abs() < torch.finfo(torch.float32).tiny, 0.0)
    made = rows, shift.float()
    return made if all(bool(part.isfinite().all()) for part in made) else None


def _give(layer: fx.Node, parameters: Parameters, graph: fx.GraphModule) -> None:
    """Let a node compute with other parameters."""
    target = f"dsgc_folded.{layer.name}"
    dense = module_of(layer)
    at = _weight_at(layer)
    if at is None:
        graph.add_submodule(target, _like(dense, *parameters))
        layer.target = target
        return
    holder = nn.Module()
    graph.add_submodule(target, holder)
    given = []
    for name, tensor in zip(("weight", "bias"), parameters, strict=True):
        holder.register_buffer(name, tensor)
        with layer.graph.inserting_before(layer):
            suffixed = f"{layer.name}_folded_{name}"
            given.append(layer.graph.create_node("get_attr", f"{target}.{name}", (), name=suffixed))
    layer.args = (*layer.args[:at], *given, *layer.args[at + 2 :])


def _like(layer: nn.Module | None, weight: Tensor, bias: Tensor) -> nn.Module:
    """The same layer with other parameters."""
    made: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Conv2d):
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
        )
        same: dict[str, Any] = {name: getattr(layer, name) for name in names}
        made = nn.Conv2d(**same, device="meta")
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = nn.Parameter(bias, requires_grad=False)
    return made.eval()


def _remove(norm: fx.Node, layer: fx.Node) -> None:
    """Take a norm out: its readers read the layer, and apply what is left of the activation."""
    nodes = norm.graph
    if not isinstance(module_of(norm), PackedBatchNorm):
        norm.replace_all_uses_with(layer)
        nodes.erase_node(norm)
        return
    again = norm.args[5] if len(norm.args) > 5 else None
    if isinstance(again, fx.Node):
        again.args = layer.args  # what it would make again is what the layer makes now
    for item in list(norm.users):
        if item.args[1] == 0:
            item.replace_all_uses_with(layer)
        elif item.args[1] == 1:
            for reader in list(item.users):
                _without_affine(reader, reader.args.index(item))
    for item in [*norm.users, norm]:
        nodes.erase_node(item)


def _without_affine(reader: fx.Node, at: int) -> None:
    """Take scale, shift and their part of the activation, from `at` on, out of the arguments."""
    act = _WITHOUT_AFFINE[str(reader.args[at + 2])]
    reader.args = (*reader.args[:at], None, None, act, *reader.args[at + 3 :])
    if own_operator(reader) == "activate" and act == "identity":
        reader.replace_all_uses_with(reader.args[0])  # type: ignore[arg-type]
        reader.graph.erase_node(reader)
