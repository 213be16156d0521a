"""Give images channels-last strides, in which convolutions are fastest on CPUs, and results those
of the dense model.
"""

from __future__ import annotations

import torch
from torch import fx

from dsgc.ops.layout import in_order_of
from dsgc.passes.context import Context
from dsgc.passes.patterns import module_of, shape_of
from dsgc.tracing.blame import is_torch_layer

__all__ = ["prefer_channels_last"]


def prefer_channels_last(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Convert every 4-D floating-point input; what is in that order already is not copied.

    Both graphs then run their dense layers on the same strides, hence with the same rounding.
    Maps are contiguous for the user's code, as results and where modules run unrecorded, unless
    inputs or weights that they depend on are channels-last when the graph runs: the dense model
    does the same.
    """
    for node in gm.graph.find_nodes(op="placeholder"):
        dtype = node.meta.get("dtype")
        if not _is_map(node) or dtype is None or not dtype.is_floating_point:
            continue
        with gm.graph.inserting_after(node):
            converted = gm.graph.create_node(
                "call_method",
                "contiguous",
                (node,),
                {"memory_format": torch.channels_last},
                name=f"{node.name}_channels_last",
            )
        converted.meta = dict(node.meta)
        # An input that is a result as well is returned as it came.
        node.replace_all_uses_with(
            converted,
            delete_user_cb=lambda user, own=converted: (
                user is not own and user.op != "output" and not _is_users_code(user)
            ),
        )
    for node in list(gm.graph.nodes):
        if node.op == "output" or _is_users_code(node):
            for result in node.all_input_nodes:
                _restore(gm, result, node)
    gm.recompile()
    return gm


def _is_users_code(node: fx.Node) -> bool:
    """Whether `node` calls code that was not recorded, and that may look at strides."""
    module = module_of(node)
    if module is None or is_torch_layer(module):
        return False
    return not type(module).__module__.startswith("dsgc.")


def _restore(gm: fx.GraphModule, result: fx.Node, reader: fx.Node) -> None:
    """Give `reader` `result` in the order of memory that it has in the dense model."""
    if result.op == "placeholder" or len(shape_of(result) or ()) < 3:
        return
    if not (deciding := _deciding(result)):
        return
    with gm.graph.inserting_before(reader):
        nodes = [one if isinstance(one, fx.Node) else gm.graph.get_attr(one) for one in deciding]
        restored = gm.graph.create_node(
            "call_function", in_order_of, (result, *nodes), name=f"{result.name}_restored"
        )
    for made in (restored, *nodes):
        made.stack_trace = made.stack_trace or result.stack_trace
        made.meta.setdefault("layer", result.meta.get("layer", ""))
    for name in ("shape", "dtype"):
        restored.meta[name] = result.meta.get(name)
    reader.replace_input_with(result, restored)


def _deciding(result: fx.Node) -> list[fx.Node | str]:
    """The inputs that `result` depends on, and the nearest weights before it: nodes, or names of
    parameters. Weights further away have the same order in practice.
    """
    found: dict[fx.Node | str, None] = {}
    todo, seen = [(result, False)], set()
    while todo:
        node, beyond = place = todo.pop()
        if place in seen:
            continue
        seen.add(place)
        if node.op in ("placeholder", "get_attr") and _is_map(node):
            found[node] = None
        weight = None if beyond else _weight_of(node)
        if weight is not None:
            found[weight] = None
        todo += [(read, beyond or weight is not None) for read in node.all_input_nodes]
    return list(found)


def _weight_of(node: fx.Node) -> str | None:
    """The name of the last parameter with four dimensions in the module that `node` calls."""
    module = module_of(node)
    names = [] if module is None else [n for n, p in module.named_parameters() if p.dim() == 4]
    return f"{node.target}.{names[-1]}" if names else None


def _is_map(node: fx.Node) -> bool:
    return len(shape_of(node) or ()) == 4
