"""Bind the packed operators to the kernels of a backend."""

from __future__ import annotations

import torch
from torch import fx

from dsgc.ops.direct import CallsOperators
from dsgc.passes.context import Context
from dsgc.passes.patterns import module_of

__all__ = ["choose_kernels", "operator_name", "operator_namespace"]


def operator_namespace(node: fx.Node) -> str | None:
    """The namespace of a dsgc operator, None for any other node."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    namespace = node.target.namespace
    return namespace if namespace == "dsgc" or namespace.startswith("dsgc_") else None


def operator_name(node: fx.Node) -> str:
    """What a node's dsgc operator is called in its namespace."""
    name: str = node.target.name().split("::")[1].split(".")[0]  # type: ignore[union-attr]
    return name


def choose_kernels(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Rebind every dsgc operator, and the modules that call some, to `context.namespace`."""
    operators = getattr(torch.ops, context.namespace)
    for node in gm.graph.nodes:
        if operator_namespace(node) is not None:
            node.target = getattr(operators, operator_name(node)).default
        module = module_of(node)
        if isinstance(module, CallsOperators):
            module.namespace = context.namespace
    gm.recompile()
    return gm
