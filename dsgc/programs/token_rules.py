"""What becomes of operations on maps that the model sees with channels last: [N, H, W, C], or
tokens [N, T, C].

They work on the rows, which hold channels last anyway; nothing is moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsgc.codegen import families
from dsgc.passes.patterns import elementwise, layer_module, signature_arguments
from dsgc.programs import dense_rules, elementwise_rules
from dsgc.programs.arithmetic_rules import arithmetic_rule
from dsgc.programs.places import is_channels_last
from dsgc.programs.values import Arranged, Rows, is_live
from dsgc.programs.writer import Writer, filled

__all__ = ["layer_norm_rule", "token_rule"]

Rule = Callable[[], Any]


def token_rule(writer: Writer, node: fx.Node, values: Mapping[fx.Node, Any]) -> Rule | None:
    """The rule for linear layers, norms, functions and arithmetic of arranged values."""
    arguments = [values[one] if isinstance(one, fx.Node) else one for one in node.args]
    x = next((one for one in arguments if isinstance(one, Arranged)), None)
    if x is None or bool((x.places < 0).any()):  # zeros have no row to work on
        return None
    module = layer_module(node, (nn.Linear,))
    if isinstance(module, nn.Linear):
        return _linear_rule(writer, x, module) if is_channels_last(x) else None
    if is_channels_last(x) and (norm := layer_norm_rule(writer, node, x.rows, values)) is not None:
        return lambda: Arranged(norm(), x.places)
    if elementwise(node) == "relu":
        return lambda: Arranged(dense_rules.relu(writer, x.rows), x.places)
    if (applied := elementwise_rules.function_of(node)) is not None:
        return lambda: Arranged(elementwise_rules.apply(writer, x.rows, applied), x.places)
    operands = [_operand(one, x) for one in arguments]
    if None in operands or node.op == "call_module":
        return None
    made = arithmetic_rule(writer, node, operands)
    return None if made is None else lambda: Arranged(made(), x.places)


def layer_norm_rule(
    writer: Writer, node: fx.Node, x: Rows, values: Mapping[fx.Node, Any]
) -> Callable[[], Rows] | None:
    """The rule for a layer norm over the channels, which the model sees last."""
    module = layer_module(node, (nn.LayerNorm,))
    if isinstance(module, nn.LayerNorm):
        shape: Any = module.normalized_shape
        weight, bias, eps = module.weight, module.bias, module.eps
    elif node.target is F.layer_norm:
        given = signature_arguments(F.layer_norm, node)
        if any(is_live(values[read]) for read in node.all_input_nodes[1:]):
            return None
        names = ("normalized_shape", "weight", "bias", "eps")
        shape, weight, bias, eps = (fx.map_arg(given[name], values.__getitem__) for name in names)
    else:
        return None
    if tuple(shape) != x.size[:1]:
        return None
    return lambda: _layer_norm(writer, x, weight, bias, eps)


def _layer_norm(
    writer: Writer, value: Rows, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Rows:
    x, channels = writer.wide(value), value.size[0]
    made = writer.rows(x.size, x.matrix, x.width)
    scale = torch.ones(channels) if weight is None else weight
    shift = torch.zeros(channels) if bias is None else bias
    writer.program.call(
        families.norms(),
        "norm_rows",
        x.view,
        writer.constant(filled(scale, x.width), "scale"),
        writer.constant(filled(shift, x.width), "shift"),
        made.view,
        channels,
        float(eps),
    )
    return made


def _linear_rule(writer: Writer, x: Arranged, layer: nn.Linear) -> Rule:
    """A linear layer on every pixel: a convolution with a window of one."""
    weight, window = layer.weight[:, :, None, None], ((1, 1), (0, 0), (1, 1))
    area = math.prod(x.rows.size[1:])
    places = x.places[..., :1] % area + area * torch.arange(layer.out_features)
    return lambda: Arranged(
        dense_rules.convolution(writer, x.rows, weight, layer.bias, window), places
    )


def _operand(value: Any, x: Arranged) -> Any:
    """A number, a parameter or a value arranged as `x`, as arithmetic of rows takes it; None for
    others.
    """
    if isinstance(value, Arranged):
        alike = value.rows.size == x.rows.size and torch.equal(value.places, x.places)
        return value.rows if alike else None
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, Tensor) or value.shape[-1:].numel() != value.numel():
        return None
    return value.reshape(-1, 1, 1) if is_channels_last(x) else None
