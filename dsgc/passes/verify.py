"""What holds between passes. A failure is a bug in dsgc, never the user's."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from dsgc.errors import VerificationError
from dsgc.ops.masked import masked_conv2d, masked_linear
from dsgc.ops.normalization import MaskedBatchNorm
from dsgc.passes.choose_kernels import operator_namespace
from dsgc.passes.choose_layers import is_layer
from dsgc.passes.context import Context
from dsgc.passes.insert_double_mask import mask_before
from dsgc.passes.patterns import batch_norm, module_of
from dsgc.select import Selector

__all__ = [
    "Check",
    "every_layer_decided",
    "everything_lowered",
    "layers_marked",
    "masks_are_double",
    "one_namespace",
    "selections_inserted",
    "shapes_known",
    "verify",
]

Check = Callable[[fx.GraphModule, Context], str | None]


def verify(name: str, gm: fx.GraphModule, context: Context, checks: tuple[Check, ...]) -> None:
    """Raise VerificationError if the graph is malformed or one of `checks` finds something."""
    try:
        gm.graph.lint()
    except Exception as error:
        raise VerificationError(f"pass {name} left a malformed graph: {error}") from error
    for check in checks:
        fault = check(gm, context)
        if fault:
            raise VerificationError(f"after pass {name}: {fault}; please report this bug in dsgc")


def shapes_known(gm: fx.GraphModule, context: Context) -> str | None:
    """Every input has a shape."""
    bare = [n.name for n in gm.graph.nodes if n.op == "placeholder" and "shape" not in n.meta]
    return f"no shapes for {', '.join(bare)}" if bare else None


def every_layer_decided(gm: fx.GraphModule, context: Context) -> str | None:
    """Every convolution and linear layer has a decision with a reason."""
    for node in gm.graph.nodes:
        if is_layer(node) and not getattr(node.meta.get("decision"), "reason", ""):
            return f"no decision about {node.name}"
    return None


def layers_marked(gm: fx.GraphModule, context: Context) -> str | None:
    """Every node belongs to a layer that was decided about, or comes before the first one."""
    for node in gm.graph.nodes:
        layer = node.meta.get("layer")
        if layer is None or (layer and layer not in context.decisions):
            return f"{node.name} belongs to {layer}, which is no layer"
    return None


def selections_inserted(gm: fx.GraphModule, context: Context) -> str | None:
    """Sparse layers read a mask that a selector made for them."""
    for node in gm.graph.nodes:
        decision = node.meta.get("decision")
        if decision is not None and decision.sparse and is_layer(node):
            return f"{node.name} is still dense"
        if node.target in (masked_conv2d, masked_linear):
            mask = node.args[3]
            if not isinstance(mask, fx.Node) or not isinstance(module_of(mask), Selector):
                return f"{node.name} has no selector"
    return None


def masks_are_double(gm: fx.GraphModule, context: Context) -> str | None:
    """No BatchNorm reads a masked value without masking its result by the same selection."""
    for node in gm.graph.nodes:
        if batch_norm(node) is not None and mask_before(node.args[0]) is not None:
            return f"{node.name} is not masked"
    return None


def everything_lowered(gm: fx.GraphModule, context: Context) -> str | None:
    """Nothing of the semantic graph is left."""
    for node in gm.graph.nodes:
        if node.target in (masked_conv2d, masked_linear):
            return f"{node.name} is not lowered"
        if isinstance(module_of(node), (Selector, MaskedBatchNorm)):
            return f"{node.name} works on dense values"
    return None


def one_namespace(gm: fx.GraphModule, context: Context) -> str | None:
    """All operators belong to the backend's namespace."""
    for node in gm.graph.nodes:
        found = operator_namespace(node)
        if found not in (None, context.namespace):
            return f"{node.name} is bound to {found}, not to {context.namespace}"
    return None
