"""Walks a lowered graph and writes the program that computes the same without torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dsgc.codegen.target import CpuTarget
from dsgc.ops.normalization import PackedBatchNorm
from dsgc.ops.recompute import Recompute, RecomputedConv2d
from dsgc.passes.patterns import (
    Pool,
    has_hooks,
    module_of,
)
from dsgc.programs import dense_rules, search_rules, sparse_rules
from dsgc.programs.errors import unsupported
from dsgc.programs.model_rules import ModelRules
from dsgc.programs.moving_rules import as_rows
from dsgc.programs.program import Emitted
from dsgc.programs.recognise import (
    affine_of,
    is_fleeting,
    is_known_module,
    own_operator,
    writes_the_batch_out,
)
from dsgc.programs.run_example import run_example
from dsgc.programs.values import Arranged, Chosen, Packed, Rows, Source, is_live
from dsgc.programs.writer import Writer
from dsgc.select import PackedSelection
from dsgc.tracing.blame import user_line

__all__ = ["emit"]


def emit(
    graph: fx.GraphModule, inputs: Sequence[Tensor], target: CpuTarget, layers: Iterable[str]
) -> Emitted:
    """The program of a lowered graph in eval mode.

    Args:
        graph: as last run on `inputs`.
        inputs: an example batch.
        layers: names of the model's modules.
        target: the CPU to write for.

    Raises:
        ExportError: an operation cannot be written; names the node and the user's line.
    """
    return _Emitter(graph, inputs, target, layers).run()


class _Emitter:
    def __init__(
        self,
        graph: fx.GraphModule,
        inputs: Sequence[Tensor],
        target: CpuTarget,
        layers: Iterable[str],
    ) -> None:
        self.graph = graph
        for node in graph.graph.nodes:
            self.check_that_example_can_run(node)
        self.writer = Writer(target, int(inputs[0].shape[0]))
        self.result = Emitted(self.writer.program)
        self.made = run_example(graph, inputs)
        self.batch = inputs[0].shape[0]
        self.values: dict[fx.Node, Any] = {}
        self.models = ModelRules(self.writer, self.values, self.made)
        self.layers = sorted((name for name in layers if name), key=len, reverse=True)

    def run(self) -> Emitted:
        for node in self.graph.graph.nodes:
            self.writer.program.layer = self.layer_of(node)
            self.values[node] = self.emit(node)
        return self.result

    def layer_of(self, node: fx.Node) -> str:
        """The module of the model that a node stands for, as far as its name tells."""
        for name in self.layers:
            plain = name.replace(".", "_")
            own = node.name.lstrip("_")  # names that begin with a digit get one in front
            if own == plain or own.startswith(plain + "_"):
                return str(name)
        return str(node.name)

    # Dispatch

    def emit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.input(node)
        if node.op == "output":
            return self.output(node)
        if node.op == "get_attr":
            return self.made[node]
        if not any(is_live(self.values[read]) for read in node.all_input_nodes):
            return self.made[node]  # it depends on nothing that an input changes
        if writes_the_batch_out(node):
            raise self.refusal(node)
        rule = self.rule(node)
        if rule is None:
            raise self.refusal(node)
        return rule()

    def rule(self, node: fx.Node) -> Callable[[], Any] | None:
        """What writes a node. Values in another shape are moved if nothing takes them so."""
        arranged = [one for one in node.all_input_nodes if isinstance(self.values[one], Arranged)]
        if not arranged:
            return self.our_rule(node) or self.models.rule(node)
        if (rule := self.models.arranged_rule(node)) is not None:
            return rule
        made = [as_rows(self.writer, self.values[one]) for one in arranged]
        if any(isinstance(one, Arranged) for one in made):
            return None
        self.values.update(zip(arranged, made, strict=True))
        return self.our_rule(node) or self.models.rule(node)

    def check_that_example_can_run(self, node: fx.Node) -> None:
        """Refuse what the user would notice: hooks, and modules that are the user's own code."""
        module = module_of(node)
        if module is not None and (has_hooks(module) or not is_known_module(module)):
            raise self.refusal(node)

    def refusal(self, node: fx.Node) -> Exception:
        module = module_of(node)
        what = (
            type(module).__name__
            if module is not None
            else getattr(node.target, "__name__", str(node.target))
        )
        if module is not None and has_hooks(module):
            what += " with hooks"
        layer = f"layer {str(node.target)!r}" if module is not None else ""
        places = ", ".join(filter(None, (layer, user_line(node))))
        where = f" ({places})" if places else ""
        return unsupported(
            f"node {node.name!r}{where} is a {what}",
            "leave that part outside of the model that you export",
        )

    def value(self, node: object) -> Any:
        return self.values[node] if isinstance(node, fx.Node) else node

    def arguments(self, node: fx.Node) -> tuple[Any, ...]:
        return cast("tuple[Any, ...]", fx.map_arg(node.args, lambda read: self.values[read]))

    def rows(self, value: Any, node: fx.Node) -> Rows:
        found = as_rows(self.writer, value) if isinstance(value, Arranged) else value
        if not isinstance(found, Rows):
            raise self.refusal(node)
        return found

    # Inputs and outputs

    def input(self, node: fx.Node) -> Any:
        example = self.made[node]
        if not isinstance(example, Tensor):
            return example
        if example.dtype != torch.float32 or example.dim() not in (2, 4):
            raise unsupported(
                f"input {node.name!r} is {example.dtype} of {example.dim()} dimensions",
                "inputs must be float32, [N, C, H, W] or [N, C]",
            )
        if example.shape[0] != self.batch:
            raise unsupported(
                f"input {node.name!r} has {example.shape[0]} samples, the first input {self.batch}",
                "every input must begin with the batch",
            )
        made, given = dense_rules.read_input(self.writer, tuple(example.shape))
        self.result.inputs[str(node.target)] = given
        return made

    def output(self, node: fx.Node) -> None:
        for leaf in pytree.tree_leaves(node.args[0]):
            value = self.value(leaf)
            self.writer.program.layer = "output"
            self.result.outputs.append(
                dense_rules.write_output(self.writer, self.rows(value, node))
            )

    # The operators of dsgc

    def our_rule(self, node: fx.Node) -> Callable[[], Any] | None:
        module = module_of(node)
        if isinstance(module, PackedSelection):
            return lambda: self.selection(node, module)
        if isinstance(module, PackedBatchNorm):
            return lambda: self.normalization(node, module)
        if isinstance(module, Recompute):
            return lambda: None
        if isinstance(module, RecomputedConv2d):
            return lambda: self.sparse_convolution(self.arguments(node)[1:])
        if (name := own_operator(node)) is not None:
            own = {
                "stem_conv2d": self.stem,
                "dense_linear": self.linear,
                "conv2d": lambda n: self.sparse_convolution(self.arguments(n)),
                "pool2d": self.packed_pool,
                "max_pool2d": self.max_pool,
                "unpack": self.unpack,
                "activate": self.activate,
                "pack": self.pack,
                "residual_add": self.residual_add,
            }.get(name)
            return None if own is None else lambda: own(node)
        if node.target is operator.getitem and isinstance(self.value(node.args[0]), tuple):
            return lambda: self.value(node.args[0])[node.args[1]]
        return None

    def source(self, arguments: Sequence[Any]) -> Source:
        x, chosen, _, scale, shift, act, size = arguments[:7]
        return Source(x, chosen, scale, shift, act, (size[0], size[1], size[2]))

    def selection(self, node: fx.Node, module: PackedSelection) -> tuple[Chosen, Chosen]:
        selector = module.selector
        chosen = search_rules.select(self.writer, selector, self.source(self.arguments(node)))
        self.result.sparsity[selector.settings.name] = 1.0 - selector.winners / selector.blocks
        return chosen, chosen

    def normalization(self, node: fx.Node, module: PackedBatchNorm) -> tuple[Any, Any, Any]:
        return self.arguments(node)[0], *affine_of(module.bn)

    def stem(self, node: fx.Node) -> Rows:
        x, weight, bias, *window = self.arguments(node)
        made = dense_rules.convolution(
            self.writer, x, weight, bias, (window[0], window[1], window[2])
        )
        return replace(made, fleeting=is_fleeting(node))

    def linear(self, node: fx.Node) -> Rows:
        x, weight, bias = self.arguments(node)
        return dense_rules.linear(self.writer, self.rows(x, node), weight, bias)

    def sparse_convolution(self, arguments: Sequence[Any]) -> Packed:
        weight, bias, chosen, _, block, *window = arguments[7:]
        return sparse_rules.convolution(
            self.writer,
            self.source(arguments),
            weight,
            bias,
            chosen,
            block,
            (window[0], window[1], window[2]),
            self.batch,
        )

    def packed_pool(self, node: fx.Node) -> tuple[Any, ...]:
        arguments = self.arguments(node)
        mode, kernel, stride, padding, ceil_mode, include_pad = arguments[7:]
        values, rowptr = self.made[node][0], self.made[node][2]
        source = self.source(arguments)
        if not isinstance(source.x, Packed):
            raise self.refusal(node)
        blocks = -(-source.size[0] // source.x.block)
        usual = values.shape[0] / max(1, (rowptr.shape[0] - 1) * blocks)
        made, chosen = sparse_rules.pool(
            self.writer, source, mode, (kernel, stride, padding), ceil_mode, include_pad, usual
        )
        return made, chosen, chosen, None

    def max_pool(self, node: fx.Node) -> tuple[Rows, None]:
        arguments = self.arguments(node)
        kernel, stride, padding, ceil_mode = arguments[7:]
        activated = self.writer.dense(self.source(arguments))
        what = Pool("max", kernel, stride, padding, ceil_mode, count_include_pad=True)
        return dense_rules.pool(self.writer, activated, what), None

    def unpack(self, node: fx.Node) -> Rows:
        return self.writer.dense(self.source(self.arguments(node)))

    def activate(self, node: fx.Node) -> Any:
        source = self.source(self.arguments(node))
        if isinstance(source.x, Rows):
            return self.writer.dense(source)
        return Packed(self.writer.activate(source), source.x.block)

    def pack(self, node: fx.Node) -> Packed:
        x, chosen, _, block = self.arguments(node)
        return sparse_rules.pack(self.writer, self.rows(x, node), chosen, block)

    def residual_add(self, node: fx.Node) -> Rows:
        *source, shortcut, relu = self.arguments(node)
        rows = self.rows(shortcut, node)
        return sparse_rules.residual_add(self.writer, self.source(source), rows, relu)
