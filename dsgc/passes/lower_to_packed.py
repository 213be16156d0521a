"""Lower the semantic graph to packed values: the same results, nothing dense in between.

An abstract interpretation: every node of the semantic graph is given a form. `Deferred` is a value,
packed or dense, whose activation function is applied by those who read it; `Selection` is the
packed form of a mask; anything else is a plain node. What has no rule of its own unpacks its
arguments and is copied.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

import dsgc.ops  # noqa: F401  defines torch.ops.dsgc
from dsgc.errors import VerificationError
from dsgc.ops.masked import masked_conv2d, masked_linear
from dsgc.ops.normalization import MaskedBatchNorm, PackedBatchNorm
from dsgc.ops.recompute import Recompute, RecomputedConv2d
from dsgc.passes.adopt import adopt
from dsgc.passes.context import Context
from dsgc.passes.forms import AFTER_NORM, AFTER_RELU, Deferred, Form, Selection, Sum
from dsgc.passes.geometry import conv_padding
from dsgc.passes.mark_layers import belongs_to
from dsgc.passes.patterns import (
    addends,
    batch_norm,
    elementwise,
    is_flatten,
    is_identity_pool,
    module_of,
    pool,
    shape_of,
)
from dsgc.passes.readers import defers_norm, is_clamped, is_stem
from dsgc.select import PackedSelection, Selector

__all__ = ["lower_to_packed"]


def lower_to_packed(
    gm: fx.GraphModule, context: Context, *, expose: bool = False
) -> fx.GraphModule:
    """A new graph module, on packed operators of namespace "dsgc"; `gm` stays as it is.

    With `expose` it also returns the dense form of every value of `gm` by name, to find the
    operator that makes a difference.
    """
    return _Lowering(gm, context).run(expose)


class _Lowering:
    def __init__(self, gm: fx.GraphModule, context: Context) -> None:
        self.source = gm
        self.graph = fx.Graph()
        self.result = fx.GraphModule(context.model, fx.Graph(), class_name="LoweredGraph")
        self.forms: dict[fx.Node, Form] = {}
        self.plain: dict[Deferred | Sum, fx.Node] = {}
        self.current: fx.Node | None = None

    def run(self, expose: bool) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            self.current = node
            if expose and node.op == "output":
                result = fx.node.map_arg(node.args[0], lambda n: self.dense(self.forms[n]))
                self.graph.output((result, self.exposed()))
                continue
            form = self.forms[node] = self.lower(node)
            if isinstance(form, Deferred):
                self.describe(form, node)
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                adopt(self.result, self.source, str(node.target))
        self.result.graph = self.graph
        self.result.recompile()
        return self.result

    def describe(self, form: Deferred, node: fx.Node) -> None:
        """Note on a value what it stands for: the shape of its dense form, and its selection."""
        meta = form.x.meta
        for name in ("shape", "dtype"):
            if name in node.meta:
                meta.setdefault(name, node.meta[name])
        if form.selection is not None:
            meta["selected_by"] = form.selection.index.name

    def exposed(self) -> dict[str, fx.Node]:
        """The dense form of every value that is no parameter and no mask."""
        found = {}
        for node, form in self.forms.items():
            if node.op != "get_attr" and not isinstance(form, Selection):
                self.current = node
                found[node.name] = self.dense(form)
        return found

    # Writing the new graph

    def emit(self, op: str, target: Any, args: tuple[Any, ...], suffix: str = "") -> fx.Node:
        """A node named after the semantic one that it belongs to."""
        current = self.current
        name = None if current is None else current.name + (f"_{suffix}" if suffix else "")
        node = self.graph.create_node(op, target, args, name=name)
        if current is not None:
            node.stack_trace = current.stack_trace
            if not suffix:
                node.meta = dict(current.meta)
            node.meta["layer"] = belongs_to(current)
        return node

    def operator(self, name: str, *args: Any, suffix: str = "") -> fx.Node:
        return self.emit("call_function", getattr(torch.ops.dsgc, name).default, args, suffix)

    def item(self, value: fx.Node, i: int, suffix: str) -> fx.Node:
        return self.emit("call_function", operator.getitem, (value, i), suffix)

    def dense(self, form: Form) -> fx.Node:
        """The plain tensor of a form."""
        if isinstance(form, fx.Node):
            return form
        if isinstance(form, Selection):
            raise VerificationError(f"{self.current}: a mask is read by something that is no layer")
        if form in self.plain:
            return self.plain[form]
        if isinstance(form, Sum):
            node = self.plain[form] = self.added(form, relu=False)
        else:
            name = "activate" if form.selection is None else "unpack"
            node = self.operator(name, *form.arguments(), suffix=name)
            node.meta["layer"] = belongs_to(form.x)  # not to who happens to read it first
            if not form.is_map:
                node = self.emit("call_method", "reshape", (node, (-1, *form.shape)), "rows")
            self.plain[form] = node
        return node

    def copy(self, node: fx.Node) -> fx.Node:
        """The default rule: everything packed that `node` reads is unpacked."""
        return self.graph.node_copy(node, lambda n: self.dense(self.forms[n]))

    @property
    def name(self) -> str:
        """What the node being lowered is called."""
        return self.current.name if self.current is not None else ""

    # Rules

    def lower(self, node: fx.Node) -> Form:
        module = module_of(node)
        if is_stem(node):
            return self.stem(node)
        if node.target is masked_conv2d:
            return self.convolution(node)
        if node.target is masked_linear:
            return self.linear(node)
        if isinstance(module, Selector):
            return self.selection(node, module)
        if isinstance(module, MaskedBatchNorm):
            return self.normalization(node, module)
        found = self.plain_rule(node)
        return self.copy(node) if found is None else found

    def plain_rule(self, node: fx.Node) -> Form | None:
        """Rules for nodes of the dense model that read a deferred value; None if none holds."""
        read = node.args[0] if node.args else None
        source = self.forms.get(read) if isinstance(read, fx.Node) else None
        if (first := self.before_norm(node, source)) is not None:
            return first
        if (both := self.addition(node)) is not None:
            return both
        kind = elementwise(node)
        if isinstance(source, Sum) and kind == "relu":
            return self.added(source, relu=True)
        if not isinstance(source, Deferred):
            return None
        if kind == "identity":
            return source
        if kind == "relu":
            return self.relu(source)
        if source.selection is None:
            return self.dense_pooling(node, source)
        if kind == "zero":
            return replace(self.settled(source), x=self.on_values(node, self.settled(source).x))
        shape = shape_of(node)
        if not source.is_map:
            return None
        if pool(node) is not None and shape is not None:
            return self.pooling(node, source, shape)
        if is_flatten(node) and source.size[1:] == (1, 1):
            return replace(source, shape=(source.size[0],))
        if is_identity_pool(node):
            return source
        return None

    def addition(self, node: fx.Node) -> Form | None:
        """A packed map plus another of its shape, in one pass; with the ReLU behind if that is all
        that reads it.
        """
        found = [(read, self.forms[read]) for read in addends(node)]
        for (read, form), (other, shortcut) in (found, found[::-1]) if found else ():
            if not isinstance(form, Deferred) or form.selection is None or not form.is_map:
                continue
            whole = form.block > 1 and form.size[0] % form.block == 0
            if not whole or any(
                x.meta.get("dtype") != node.meta.get("dtype") for x in (read, other)
            ):
                continue
            both = Sum(form, self.dense(shortcut))
            return both if is_clamped(node) else self.added(both, relu=False)
        return None

    def added(self, both: Sum, relu: bool) -> fx.Node:
        return self.operator("residual_add", *both.packed.arguments(), both.shortcut, relu)

    def before_norm(self, node: fx.Node, source: Form | None) -> Form | None:
        """Rules for what a dense layer makes: a BatchNorm that sparse layers apply themselves, and
        a ReLU right before one.
        """
        if isinstance(source, fx.Node):
            shape = shape_of(node.args[0])
            if shape is None or len(shape) != 4:
                return None
            value = Deferred(source, None, "identity", _size(shape), shape[1:])
            if defers_norm(node):
                found = replace(value, again=self.again(source))
                return self.affine(found, batch_norm(node), "all")
            readers = list(node.users)
            if elementwise(node) == "relu" and len(readers) == 1 and defers_norm(readers[0]):
                return self.relu(value)
            return None
        if not isinstance(source, Deferred) or source.selection is not None:
            return None
        if source.act == "relu" and defers_norm(node):
            return self.affine(source, batch_norm(node), "all")
        return None

    def input_of(self, node: object, rows: bool) -> Deferred:
        """The form of a layer's input as operators take it; rows are maps of 1 x 1."""
        if not isinstance(node, fx.Node):
            raise VerificationError(f"{self.current}: a layer without an input")
        form, shape = self.forms[node], shape_of(node)
        if shape is None:
            raise VerificationError(f"{self.current}: the shape of its input is not known")
        if isinstance(form, Deferred) and form.is_map != rows:
            return form
        x = self.dense(form)
        if not rows:
            return Deferred(x, None, "identity", _size(shape), shape[1:])
        x = self.emit("call_method", "reshape", (x, (-1, shape[-1], 1, 1)), "input")
        return Deferred(x, None, "identity", (shape[-1], 1, 1), shape[1:])

    def selection(self, node: fx.Node, selector: Selector) -> Selection:
        value = self.input_of(node.args[0], _selects_rows(node))
        target = f"dsgc_packed.{node.name}"
        self.result.add_submodule(target, PackedSelection(selector))
        found = self.emit("call_module", target, value.arguments(), "selection")
        return Selection(self.item(found, 0, "index"), self.item(found, 1, "rowptr"))

    def stem(self, node: fx.Node) -> fx.Node:
        """A dense convolution whose map is made again in backward: see `dsgc.ops.recompute`."""
        conv = module_of(node)
        if not isinstance(conv, nn.Conv2d):
            raise VerificationError(f"{node.name}: not a convolution")
        x = self.dense(self.forms[node.args[0]])  # type: ignore[index]
        names = ("weight", "bias") if conv.bias is not None else ("weight",)
        found = [self.emit("get_attr", f"{node.target}.{name}", (), name) for name in names]
        weight, bias = (*found, None)[:2]
        window = (conv.stride, conv_padding(conv), conv.dilation)
        return self.operator("stem_conv2d", x, weight, bias, *window)

    def again(self, source: fx.Node) -> fx.Node | None:
        """The node that says how to make `source` again, if it is a stem."""
        if source.target is not torch.ops.dsgc.stem_conv2d.default:
            return None
        target = f"dsgc_again.{self.name}"
        self.result.add_submodule(target, Recompute("dsgc"))
        return self.emit("call_module", target, source.args, "again")

    def convolution(self, node: fx.Node) -> Deferred:
        x, weight, bias, mask, block, stride, padding, dilation = node.args
        shape = shape_of(node)
        if shape is None:
            raise VerificationError(f"{node.name}: its shape is not known")
        window = (stride, padding, dilation)
        size = _size(shape)
        return self.layer(self.input_of(x, False), weight, bias, mask, block, window, size, size)

    def linear(self, node: fx.Node) -> Deferred:
        x, weight, bias, mask, block = node.args
        shape = shape_of(node)
        if shape is None or not isinstance(weight, fx.Node):
            raise VerificationError(f"{node.name}: its shape is not known")
        value = self.input_of(x, True)
        flat = self.dense(self.forms[weight])
        kernel_shape = (shape[-1], value.size[0], 1, 1)
        kernel = self.emit("call_method", "reshape", (flat, kernel_shape), "kernel")
        window, size = ((1, 1), (0, 0), (1, 1)), (shape[-1], 1, 1)
        return self.layer(value, kernel, bias, mask, block, window, size, shape[1:])

    def layer(
        self,
        value: Deferred,
        weight: Any,
        bias: Any,
        mask: Any,
        block: Any,
        window: tuple[Any, ...],
        size: tuple[int, int, int],
        shape: tuple[int, ...],
    ) -> Deferred:
        chosen = self.forms[mask]
        if not isinstance(chosen, Selection):
            raise VerificationError(f"{self.current}: its mask does not come from a selector")
        tensors = [
            self.dense(self.forms.get(t, t)) if t is not None else None for t in (weight, bias)
        ]
        arguments = (*value.arguments(), *tensors, chosen.index, chosen.rowptr, block, *window)
        if value.again is None:
            y = self.operator("conv2d", *arguments)
        else:
            target = f"dsgc_recomputed.{self.name}"
            self.result.add_submodule(target, RecomputedConv2d("dsgc"))
            y = self.emit("call_module", target, (value.again, *arguments))
        return Deferred(y, chosen, "identity", size, shape, block)

    def relu(self, value: Deferred) -> Deferred:
        if value.act not in AFTER_RELU:
            value = self.settled(value)
        return replace(value, act=AFTER_RELU[value.act])

    def settled(self, value: Deferred) -> Deferred:
        """The same value with nothing left to apply."""
        if value.act == "identity":
            return value
        x = self.operator("activate", *value.arguments(), suffix="activated")
        return replace(value, x=x, act="identity", scale=None, shift=None)

    def on_values(self, node: fx.Node, values: fx.Node) -> fx.Node:
        """`node`, an elementwise function with f(0) = 0, on packed values."""
        return self.graph.node_copy(node, lambda _: values)

    def normalization(self, node: fx.Node, norm: MaskedBatchNorm) -> Form:
        value, mask = self.forms[node.args[0]], self.forms[node.args[1]]  # type: ignore[index]
        if not isinstance(value, Deferred) or value.selection is None or value.selection != mask:
            raise VerificationError(f"{node.name}: its input is not packed by its own mask")
        return self.affine(value, norm.bn, norm.over)

    def affine(self, value: Deferred, norm: nn.Module | None, over: str) -> Deferred:
        if norm is None:
            raise VerificationError(f"{self.current}: not a normalization")
        if value.act not in AFTER_NORM:
            value = self.settled(value)
        target = f"dsgc_norm.{self.name}"
        self.result.add_submodule(target, PackedBatchNorm(norm, over, "dsgc"))
        index, rowptr = value.arguments()[1:3]
        relu = value.act == "relu"
        arguments: tuple[Any, ...] = (value.x, index, rowptr, value.size, relu)
        if value.again is not None:
            arguments = (*arguments, value.again)
        found = self.emit("call_module", target, arguments, "norm")
        x, scale, shift = (
            self.item(found, i, name) for i, name in enumerate(("value", "scale", "shift"))
        )
        return replace(value, x=x, act=AFTER_NORM[value.act], scale=scale, shift=shift)

    def pooling(self, node: fx.Node, value: Deferred, shape: tuple[int, ...]) -> Deferred | None:
        p = pool(node)
        if p is None:
            return None
        window = (p.kernel, p.stride, p.padding, p.ceil_mode, p.count_include_pad)
        found = self.operator("pool2d", *value.arguments(), p.mode, *window, suffix="pool")
        values, index, rowptr = (
            self.item(found, i, name) for i, name in enumerate(("values", "index", "rowptr"))
        )
        chosen = Selection(index, rowptr)
        return Deferred(values, chosen, "identity", _size(shape), shape[1:], value.block)

    def dense_pooling(self, node: fx.Node, value: Deferred) -> fx.Node | None:
        """The max pooling of a dense value, which applies what is left to apply."""
        p = pool(node)
        if p is None or p.mode != "max" or value.act == "identity":
            return None
        window = (p.kernel, p.stride, p.padding, p.ceil_mode)
        found = self.operator("max_pool2d", *value.arguments(), *window, suffix="pool")
        return self.emit("call_function", operator.getitem, (found, 0))


def _selects_rows(mask: fx.Node) -> bool:
    """Whether a selector reads rows [..., C] and not maps."""
    decision = mask.meta["selects_for"]
    return bool(decision.kind == "Linear" and decision.geometry.map_size is None)


def _size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return (shape[1], shape[2], shape[3])
