"""Lowered graphs whose operators are called as plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from dsgc.ops.direct import CallsOperators
from dsgc.passes.choose_kernels import operator_name, operator_namespace
from dsgc.passes.patterns import module_of

__all__ = ["call_directly"]


def call_directly(gm: fx.GraphModule, functions: Any) -> Callable[..., Any]:
    """What runs `gm`, with all of its modules and parameters, on `functions` in the place of its
    operators.

    Args:
        gm: a lowered graph; it stays as it is.
        functions: see :func:`dsgc.ops.direct.direct_operators`.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        made = copies[node] = graph.node_copy(node, copies.__getitem__)
        module = module_of(node)
        if operator_namespace(node) is not None:
            # One that somebody has added stays an operator.
            made.target = getattr(functions, operator_name(node), node.target)
        elif isinstance(module, CallsOperators):
            made.op, made.target = "call_function", module.with_functions(functions).forward
    code = graph.python_code("self")
    place: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<dsgc: operators called directly>", "exec"), place)
    forward: Callable[..., Any] = place["forward"]
    return lambda *inputs: forward(gm, *inputs)
