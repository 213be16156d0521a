"""What modules, functions and methods of the dense model become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from dsgc.passes.geometry import conv_padding
from dsgc.passes.patterns import (
    batch_norm,
    elementwise,
    layer_module,
    module_of,
    pooling,
)
from dsgc.programs import (
    dense_rules,
    elementwise_rules,
    function_rules,
    grouped_rules,
    transposed_rules,
)
from dsgc.programs.arithmetic_rules import arithmetic_rule
from dsgc.programs.interpolation_rules import interpolation_rule
from dsgc.programs.moving_rules import moving_rule, run_of
from dsgc.programs.recognise import (
    CONCATENATIONS,
    affine_of,
    changes_nothing,
    is_fleeting,
    joined,
    softmax_dimension,
)
from dsgc.programs.token_rules import layer_norm_rule, token_rule
from dsgc.programs.values import Arranged, Packed, Rows, is_live
from dsgc.programs.writer import Writer

__all__ = ["ModelRules", "Rule"]

Rule = Callable[[], Any]


class ModelRules:
    """The rules for nodes of the dense model.

    Args:
        writer: of the program.
        values: what the nodes so far have become.
        made: what every node makes of the example; shapes alone where that depends on an input.
    """

    def __init__(
        self, writer: Writer, values: Mapping[fx.Node, Any], made: Mapping[fx.Node, Any]
    ) -> None:
        self.writer = writer
        self.values = values
        self.made = made

    def rule(self, node: fx.Node) -> Rule | None:
        """What writes a node, None if nothing here does."""
        if _asks_for_a_shape(node):
            return lambda: self.made[node]
        return self.module_rule(node) or self.function_rule(node)

    def value(self, node: object) -> Any:
        return self.values[node] if isinstance(node, fx.Node) else node

    def known(self, node: fx.Node) -> dict[fx.Node, Any]:
        """What a node reads that no input changes."""
        read = {one: self.values[one] for one in node.all_input_nodes}
        return {one: value for one, value in read.items() if not is_live(value)}

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.made[node].shape)

    # What the model sees in another shape than it lies

    def arranged_rule(self, node: fx.Node) -> Rule | None:
        """What writes a node that reads such values, without moving them."""
        if _asks_for_a_shape(node):
            return lambda: self.made[node]
        x, made = (self.value(node.args[0]) if node.args else None), self.made[node]
        if not isinstance(x, Arranged):
            return token_rule(self.writer, node, self.values)
        if changes_nothing(node):
            return lambda: x
        rule = moving_rule(self.writer, node, x, self.known(node), made)
        if rule is not None or not isinstance(made, Tensor):
            return rule
        return function_rules.arranged_averaging_rule(
            self.writer, node, x, tuple(made.shape)
        ) or token_rule(self.writer, node, self.values)

    # Modules

    def module_rule(self, node: fx.Node) -> Rule | None:
        module = module_of(node)
        if module is None:
            return None
        x = self.value(node.args[0]) if node.args else None
        if isinstance(x, Packed):
            return self.packed_rule(node, x)
        if not isinstance(x, Rows):
            return None
        norm = batch_norm(node)
        if norm is not None and norm.running_mean is not None:
            return lambda: dense_rules.affine(self.writer, x, *affine_of(norm))
        if isinstance(module, nn.Conv2d):
            return self.convolution_rule(node, module, x)
        if isinstance(module, nn.ConvTranspose2d):
            known = layer_module(node, (nn.ConvTranspose2d,)) is not None
            return transposed_rules.convolution_rule(self.writer, module, x) if known else None
        if isinstance(module, nn.Linear) and x.matrix:
            return lambda: dense_rules.linear(self.writer, x, module.weight, module.bias)
        if changes_nothing(node):
            return lambda: x
        if isinstance(module, nn.AdaptiveAvgPool2d):
            height, width = self.shape(node)[2:]
            return lambda: dense_rules.adaptive_average(self.writer, x, (height, width))
        return self.shape_rule(node, x) or self.shared_rule(node, x)

    def packed_rule(self, node: fx.Node, x: Packed) -> Rule | None:
        """Functions that keep zeros, of packed values."""
        applied = elementwise_rules.function_of(node)
        if applied is None or elementwise(node) != "zero":
            return None
        return lambda: elementwise_rules.apply_packed(self.writer, x, applied)

    def convolution_rule(self, node: fx.Node, conv: nn.Conv2d, x: Rows) -> Rule | None:
        padding = conv_padding(conv)
        if conv.padding_mode != "zeros" or padding is None:
            return None
        given = (self.writer, x, conv.weight, conv.bias, (conv.stride, padding, conv.dilation))
        if conv.groups == 1:
            return lambda: replace(dense_rules.convolution(*given), fleeting=is_fleeting(node))
        if conv.groups == conv.in_channels == conv.out_channels:
            return lambda: dense_rules.depthwise(*given)
        made = partial(grouped_rules.convolution, *given, conv.groups)
        return lambda: replace(made(), fleeting=is_fleeting(node))

    # What may be a module, a function or a method

    def shared_rule(self, node: fx.Node, x: Rows) -> Rule | None:
        kind = elementwise(node)
        if kind in ("relu", "identity"):
            return lambda: x if kind == "identity" else dense_rules.relu(self.writer, x)
        what = pooling(node, self.known(node))
        if what is not None:
            return lambda: dense_rules.pool(self.writer, x, what)
        if x.matrix and (norm := layer_norm_rule(self.writer, node, x, self.values)) is not None:
            return norm
        applied = elementwise_rules.function_of(node)
        if applied is not None:
            return lambda: elementwise_rules.apply(self.writer, x, applied)
        if softmax_dimension(node) in ((1, -1) if x.matrix else (1, -3)):
            return lambda: elementwise_rules.softmax(self.writer, x)
        return None

    def shape_rule(self, node: fx.Node, x: Rows) -> Rule | None:
        """What moves values, and averages of pixels."""
        known, made = self.known(node), self.made[node]
        rule = moving_rule(self.writer, node, x, known, made)
        if rule is not None or not isinstance(made, Tensor):
            return rule
        run = run_of(node, x, known, made)
        if (rule := interpolation_rule(self.writer, node, x, run)) is not None:
            return rule
        return function_rules.averaging_rule(self.writer, node, x, self.shape(node))

    # Functions and methods

    def function_rule(self, node: fx.Node) -> Rule | None:
        if node.op == "call_module":
            return None
        if node.target in CONCATENATIONS:
            return self.concatenation_rule(node)
        values = [self.value(read) for read in node.args]
        x = values[0] if values else None
        if isinstance(x, Packed):
            return self.packed_rule(node, x)
        if (rule := arithmetic_rule(self.writer, node, values)) is not None:
            return rule
        if not isinstance(x, Rows):
            return None
        if changes_nothing(node):
            return lambda: x
        return self.shape_rule(node, x) or self.shared_rule(node, x)

    def concatenation_rule(self, node: fx.Node) -> Rule | None:
        parts, dimension = joined(node)
        found = self.value(parts)  # what `chunk` makes, or a list of nodes
        if not isinstance(found, (list, tuple)):
            return None
        values = [self.value(part) for part in found]
        return elementwise_rules.concatenation_rule(self.writer, values, dimension)


def _asks_for_a_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.target is getattr and node.args[1] == "shape"
