"""How far two models are apart, layer by layer: sparse and dense, or the two graphs of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dsgc.errors import InputError
from dsgc.example_inputs import positional
from dsgc.inspect.sides import Side, Sides
from dsgc.inspect.tables import Column, LayerTable, Tabular
from dsgc.module import SparseModule
from dsgc.passes.mark_layers import belongs_to
from dsgc.passes.propagate_shapes import eval_mode
from dsgc.watch import Watched, label_of

__all__ = ["Comparison", "Difference", "compare"]

_COLUMNS = (
    Column("value"),
    Column("layer"),
    Column("operation"),
    Column("SQNR dB", number=True),
    Column("cosine", number=True),
    Column("max error", number=True),
    Column("computed", number=True),
)


@dataclass(frozen=True)
class Difference:
    """How far one value is from what it is compared with.

    Attributes:
        name: of the layer, or of the node.
        layer: that it belongs to.
        operation: what made it.
        sqnr: signal over error power in decibels; infinite for equal values.
        cosine: of the angle between the two, taken as vectors; 1 for two zeros.
        max_error: the largest difference of an entry.
        computed: the fraction of entries that are not zero in the value.
    """

    name: str
    layer: str
    operation: str
    sqnr: float
    cosine: float
    max_error: float
    computed: float


@dataclass(frozen=True)
class Comparison(Tabular):
    """Differences in the order of execution.

    Attributes:
        title: what was compared.
        differences: a value each.
    """

    title: str
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """The value with the least SQNR."""
        return min(self.differences, key=lambda one: one.sqnr)

    def first_below(self, decibels: float) -> Difference | None:
        """The first value whose SQNR is below; where a fault begins. None if there is none."""
        return next((one for one in self.differences if not one.sqnr >= decibels), None)

    def table(self) -> LayerTable:
        """A row a value."""
        rows = tuple(
            (
                one.name,
                one.layer,
                one.operation,
                f"{one.sqnr:.1f}",
                f"{one.cosine:.6f}",
                f"{one.max_error:.3g}",
                f"{one.computed:.1%}",
            )
            for one in self.differences
        )
        return LayerTable(self.title, _COLUMNS, rows)

    def records(self) -> list[dict[str, Any]]:
        """A record a value."""
        return [asdict(one) for one in self.differences]


def compare(
    sparse: SparseModule,
    other: nn.Module | Literal["semantic"],
    inputs: Tensor | tuple[Any, ...] | list[Any],
) -> Comparison:
    """Say where and how far a compiled model differs from another one, in eval mode.

    Against a dense model every convolution's and linear layer's output is compared, each model
    running on its own values, so that differences add up as they do in use; what is left out
    counts as zero. Against "semantic", the plain PyTorch graph that defines the results, every
    operation's output is compared on equal selections: only rounding should be seen, and
    `first_below(60)` is the operation that is wrong where it is not.

    Args:
        sparse: the compiled model.
        other: a dense model with layers of the same names, or "semantic".
        inputs: positional inputs of both.

    Raises:
        InputError: `other` is neither, or has no layer of the same name; or the inputs do not fit.
    """
    if not isinstance(sparse, SparseModule):
        raise InputError(f"compare takes a compiled model first, not a {type(sparse).__name__}")
    if isinstance(other, SparseModule):
        raise InputError(
            "the other model is compiled as well: compare each with its dense model, such as "
            "other.to_dense()"
        )
    args = positional(inputs, "inputs")
    sparse._check(args, {})
    sparse._engine.prepare(args, {})
    sides = Sides(sparse, args, {})
    with sides.untouched(), sparse.in_eval_mode(), torch.no_grad():
        if other == "semantic":
            return _with_semantic(sparse, sides)
        if not isinstance(other, nn.Module):
            raise InputError(f'compare takes a model or "semantic", not {other!r}')
        return _with_dense(sparse, sides, other, args)


def _with_semantic(sparse: SparseModule, sides: Sides) -> Comparison:
    with sparse.hold_selection():
        right, nodes = _values(sides, "semantic", lambda node: node.name)
        mine = _exposed(sides)
    found = [
        _difference(name, nodes[name], mine[name], right[name]) for name in right if name in mine
    ]
    name = type(sparse._dense[0]).__name__
    return Comparison(f"{name}: {sparse.backend} kernels and the semantic graph", tuple(found))


def _with_dense(
    sparse: SparseModule, sides: Sides, dense: nn.Module, args: tuple[Any, ...]
) -> Comparison:
    mine, nodes = _values(sides, "semantic", _site)
    layers = {decision.name for decision in sparse.decisions.values()}
    with eval_mode(dense), _recorded(dense, layers) as right:
        try:
            dense(*args)
        except Exception as error:
            raise InputError(
                f"the other model cannot run on these inputs: {type(error).__name__}: {error}"
            ) from error
    found = [
        _difference(site, nodes[site], value, right[site].reshape(value.shape))
        for site, value in mine.items()
        if site in right and right[site].numel() == value.numel()
    ]
    if not found:
        raise InputError(
            f"{type(dense).__name__} has no layer like those of {type(sparse._dense[0]).__name__}: "
            "names and shapes must be the same"
        )
    return Comparison(f"{type(dense).__name__}: sparse and dense", tuple(found))


def _site(node: fx.Node) -> str | None:
    decision = node.meta.get("decision")
    return None if decision is None else str(decision.site)


def _values(
    sides: Sides, side: Side, key: Callable[[fx.Node], str | None]
) -> tuple[dict[str, Tensor], dict[str, fx.Node]]:
    """The floating-point values of nodes for which there is a key, and the nodes."""
    values: dict[str, Tensor] = {}
    nodes: dict[str, fx.Node] = {}

    def made(node: fx.Node, tensor: Tensor) -> None:
        name = None if node.op == "get_attr" else key(node)
        if name is not None and tensor.is_floating_point():
            values[name], nodes[name] = tensor.detach(), node

    sides.run(side, lambda graph: Watched(graph, made=made))
    return values, nodes


def _exposed(sides: Sides) -> dict[str, Tensor]:
    """The dense form of every value that the lowered graphs make, by its semantic node."""
    found: dict[str, Tensor] = {}

    class Keeper(Watched):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            result, values = super().run(*args, **kwargs)
            found.update({k: v for k, v in values.items() if isinstance(v, Tensor)})
            return result

    sides.run("exposed", Keeper)
    return found


@contextmanager
def _recorded(model: nn.Module, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """Within, the outputs of the named layers are kept, `name#2` for a second call."""
    found: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor):
                    found[name if calls[name] == 1 else f"{name}#{calls[name]}"] = leaf.detach()

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _difference(name: str, node: fx.Node, value: Tensor, right: Tensor) -> Difference:
    mine, its = (x.detach().to(torch.float64).reshape(-1) for x in (value, right))
    error, signal = mine - its, float(its.square().sum())
    noise = float(error.square().sum())
    sqnr = math.inf if noise == 0.0 else 10 * math.log10(signal / noise) if signal else -math.inf
    norms = float(mine.norm() * its.norm())
    same = float(mine.norm()) == float(its.norm()) == 0.0
    return Difference(
        name,
        belongs_to(node),
        label_of(node),
        sqnr if math.isfinite(noise) else -math.inf,
        float(mine @ its) / norms if norms else float(same),
        float(error.abs().max()) if error.numel() else 0.0,
        float((mine != 0).double().mean()) if mine.numel() else 1.0,
    )
