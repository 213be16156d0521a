"""The order of memory that values have in the dense model, for those who notice."""

from __future__ import annotations

from torch import fx, nn

from dsgc.ops.layout import in_order_of
from dsgc.passes.patterns import module_of, shape_of
from dsgc.tracing.kinds import name_of

__all__ = ["AS_GIVEN", "is_map", "restore_order"]

AS_GIVEN = "as_given"  # in `meta` of an input in another order: the input itself

# Who reads a map through these sees the order of the map.
_MOVES_EXTENTS = ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis")
# What these make is in one order, whatever they read.
_CONTIGUOUS_MODULES = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
_CONTIGUOUS = ("linear", "layer_norm", "matmul", "bmm", "cat", "scaled_dot_product_attention")


def restore_order(gm: fx.GraphModule, value: fx.Node, reader: fx.Node) -> None:
    """Give `reader` `value` in the order of memory that it has in the dense model.

    That is decided where it is a map, or made of one, as tokens are of an image. Vectors [N, C]
    have one order only.
    """
    todo = [(value, reader)]
    seen = set(todo)
    while todo:
        value, reader = todo.pop()
        if is_map(value) and name_of(value) not in _MOVES_EXTENTS:
            _restore_map(gm, value, reader)
        elif len(shape_of(value) or ()) > 2 and not _is_contiguous(value):
            further = {(read, value) for read in value.all_input_nodes} - seen
            seen |= further
            todo += further


def _is_contiguous(node: fx.Node) -> bool:
    return isinstance(module_of(node), _CONTIGUOUS_MODULES) or name_of(node) in _CONTIGUOUS


def _restore_map(gm: fx.GraphModule, result: fx.Node, reader: fx.Node) -> None:
    if (given := result.meta.get(AS_GIVEN)) is not None:
        reader.replace_input_with(result, given)
        return
    if result.op == "placeholder" or not (deciding := _deciding(result)):
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
        if node.op in ("placeholder", "get_attr") and is_map(node):
            found[node] = None
        weight = None if beyond else _weight_of(node)
        if weight is not None:
            found[weight] = None
        todo += [(read, beyond or weight is not None) for read in _in_whose_order(node)]
    return list(found)


def _in_whose_order(node: fx.Node) -> list[fx.Node]:
    """What a result takes its order from: of several maps the first one, as torch does. A map of
    one pixel, such as a gate, is in any order.
    """
    maps = [
        read
        for read in node.all_input_nodes
        if is_map(read) and shape_of(read)[2:] != (1, 1)  # type: ignore[index]
    ]
    return maps[:1] or node.all_input_nodes


def _weight_of(node: fx.Node) -> str | None:
    """The name of the last parameter with four dimensions in the module that `node` calls."""
    module = module_of(node)
    names = [] if module is None else [n for n, p in module.named_parameters() if p.dim() == 4]
    return f"{node.target}.{names[-1]}" if names else None


def is_map(node: fx.Node) -> bool:
    """Whether a value is a map [N, C, H, W]."""
    return len(shape_of(node) or ()) == 4
