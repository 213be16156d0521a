"""`dsgc.group_neurons`: neurons that fire together come into one block, the function stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsgc.api import settled
from dsgc.config import SparsityConfig
from dsgc.engine import Engine
from dsgc.errors import ConfigError, InputError, NothingToSparsifyError
from dsgc.example_inputs import positional
from dsgc.grouping.channels import Channels, Space, read_channels
from dsgc.grouping.cluster import cluster, kept_share
from dsgc.inspect.tables import Column, LayerTable, Tabular
from dsgc.module import SparseModule
from dsgc.nothing_sparse import no_sparse_layer
from dsgc.ops.layout import ceil_div
from dsgc.passes.balance_winners import balance_winners
from dsgc.passes.patterns import batch_norm, elementwise
from dsgc.passes.propagate_shapes import eval_mode
from dsgc.program import Program

__all__ = ["GroupedLayer", "Grouping", "group_neurons"]

_POSITIONS = 8192  # looked at, in each layer
_COLUMNS = (
    Column("layer"),
    Column("block", number=True),
    Column("winners", number=True),
    Column("kept before", number=True),
    Column("kept", number=True),
    Column("reordered"),
)


@dataclass(frozen=True)
class GroupedLayer:
    """What reordering did for a layer.

    Attributes:
        name: of the layer, with `#2` and so on for further calls.
        block: channels selected together.
        winners: blocks computed at a position, out of `blocks`.
        before: part of the layer's activation that lies in the best blocks of each position, 0 to
            1, in the old order; what a perfect selection would have kept.
        after: the same in the new order.
        fixed: why its channels had to stay where they are; "" if they were reordered.
    """

    name: str
    block: int
    winners: int
    blocks: int
    before: float
    after: float
    fixed: str


@dataclass(frozen=True)
class Grouping(Tabular):
    """What `dsgc.group_neurons` did; print it, or take it apart."""

    model: str
    sparsity: float
    layers: tuple[GroupedLayer, ...]

    def table(self) -> LayerTable:
        """A row a layer that would be sparse."""
        rows = tuple(
            (
                *(layer.name, str(layer.block), f"{layer.winners} of {layer.blocks}"),
                *(f"{layer.before:.0%}", f"{layer.after:.0%}"),
                f"no: {layer.fixed}" if layer.fixed else "yes",
            )
            for layer in self.layers
        )
        title = f"{self.model}: activation kept by the best blocks at sparsity {self.sparsity:g}"
        return LayerTable(title, _COLUMNS, rows)

    def records(self) -> list[dict[str, Any]]:
        """A record a layer."""
        return [asdict(layer) for layer in self.layers]


def group_neurons(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    config: SparsityConfig | None = None,
    example_inputs: Tensor | tuple[Any, ...] | list[Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> Grouping:
    """Reorder the channels of a dense model, so that neurons that fire together share a block.

    Whole blocks of neighbouring channels are selected, and in a model that was trained dense
    neighbours have nothing in common: the best blocks hold little of the activation. Reordered,
    they hold much more, and the sparse model starts close to the dense one. The dense model
    computes what it did before (up to rounding, as sums have another order); its parameters keep
    their names, shapes and identity, but not the order of their channels, so reorder before
    training goes on and before checkpoints are taken, not between.

    Channels whose order other code may depend on stay; residual branches are reordered together.

    Args:
        model: the dense model, trained at least for a while; it is changed in place.
        sparsity, config: as for `dsgc.compile`, which is to be called with the same afterwards.
        example_inputs: positional inputs, some dozen to some hundred samples of the real data.
            The model runs once on them, in eval mode.
        optimizer: its state (momentum, say) is reordered along.

    Returns:
        By layer, how much of the activation the best blocks hold, before and after.

    Raises:
        InputError: `model` is sparse already, or the inputs hold no tensor or values that are not
            finite.
        NothingToSparsifyError: no layer would be sparse.
        ConfigError, UnknownLayerError: as for `dsgc.compile`.
    """
    if isinstance(model, SparseModule):
        raise InputError("group_neurons takes the dense model: reorder it, then compile it")
    args = positional(example_inputs)
    if not any(isinstance(one, Tensor) and one.numel() > 0 for one in args):
        raise InputError("example_inputs must hold a tensor with real samples of the data")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer must be one of torch.optim, not {optimizer!r}: its state is reordered",
            "optimizer",
        )
    dense, config = settled(model, sparsity, config)
    look = _Look(dense, replace(config, schedule="constant", warmup_steps=0), args)
    channels = read_channels(dense, (program.dense.graph for program in look.programs))
    orders = _orders(look, channels)
    layers = tuple(_grouped(look, channels, orders, site) for site in look.fired)
    for space, order in orders:
        _reorder(space, order, optimizer)
    return Grouping(type(dense).__name__, config.sparsity, layers)


class _Look:
    """Which layers would be sparse, and how their neurons fire on some samples."""

    def __init__(self, model: nn.Module, config: SparsityConfig, args: tuple[Any, ...]) -> None:
        self.config = config
        sparse = SparseModule(model, config, "reference")
        sparse._check(args, {})
        engine: Engine = sparse._engine
        self.programs = engine.look(args, {})
        # Whether a layer pays depends on the batch, and these samples need not be one.
        self.decisions = {s: d for s, d in engine.decisions.items() if d.sparse or d.too_dear}
        if not self.decisions:
            reasons = {site: decision.reason for site, decision in engine.decisions.items()}
            raise NothingToSparsifyError(no_sparse_layer(reasons), reasons)
        self.shares = balance_winners(self.decisions.values())
        self.nodes = {
            decision.site: _activated(node)
            for program in self.programs
            for node in program.dense.graph.nodes
            if (decision := node.meta.get("decision")) is not None
            and decision.site in self.decisions
        }
        self.fired: dict[str, Tensor] = {}
        engine.watch = self._run
        with eval_mode(model):
            engine.call_part("", args, {})
        self.blocks = {site: self._block(site) for site in self.fired}

    def _block(self, site: str) -> int:
        name, channels = self.decisions[site].name, self.fired[site].shape[1]
        return self.config.settings_for(name, channels).block

    def winners(self, site: str, blocks: int) -> int:
        """Blocks that a position computes."""
        if self.decisions[site].sparse:
            return self.shares[site].winners
        settings = self.config.settings_for(self.decisions[site].name, 1)
        return max(1, round(blocks * (1.0 - settings.sparsity)))

    def _run(self, program: Program, namespace: str | None, tensors: list[Tensor]) -> Any:
        graph = program.dense.graph
        sites = {node: site for site, node in self.nodes.items() if node.graph is graph}
        return _Listener(program.dense, sites, self.fired).run(*tensors)


class _Listener(fx.Interpreter):
    """Runs a graph and keeps what some nodes fired, at some positions."""

    def __init__(
        self, graph: fx.GraphModule, sites: dict[fx.Node, str], fired: dict[str, Tensor]
    ) -> None:
        super().__init__(graph)
        self.sites, self.fired = sites, fired

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.sites:
            site = self.sites[n]
            seen = _positions(result)
            if not bool(torch.isfinite(seen).all()):
                raise InputError(
                    f"{site}: its outputs are not finite for these inputs; are the weights sound?"
                )
            self.fired[site] = seen
        return result


def _positions(value: Tensor) -> Tensor:
    """Rows [positions, C] of a map or of rows, as many as are looked at; negative values as 0."""
    rows = value.permute(0, 2, 3, 1) if value.dim() == 4 else value
    rows = rows.reshape(-1, rows.shape[-1])
    if len(rows) > _POSITIONS:
        random = torch.Generator().manual_seed(0)
        rows = rows[torch.randperm(len(rows), generator=random)[:_POSITIONS].to(rows.device)]
    return rows.detach().float().clamp(min=0.0).cpu()


def _activated(node: fx.Node) -> fx.Node:
    """Where the output of a layer has been through its batch norm and activation."""
    while len(node.users) == 1:
        reader = next(iter(node.users))
        if batch_norm(reader) is None and elementwise(reader) is None:
            break
        node = reader
    return node


def _orders(look: _Look, channels: Channels) -> list[tuple[Space, Tensor]]:
    """A new order for every space that sparse layers write and that may change."""
    sharing: dict[int, tuple[Space, list[str]]] = {}
    for site in look.fired:
        space = channels.space_of(look.nodes[site])
        if space is not None and not space.fixed:
            sharing.setdefault(id(space), (space, []))[1].append(site)
    found = []
    for space, sites in sharing.values():
        block = max(look.blocks[site] for site in sites)
        if 1 < block < space.size:
            # Residual branches: a block should fire together in all of them.
            together = torch.cat([_scaled(look.fired[site]) for site in sites])
            found.append((space, cluster(together, block)))
    return found


def _scaled(fired: Tensor) -> Tensor:
    length: Tensor = fired.norm()
    return fired / length.clamp(min=1e-12)


def _grouped(
    look: _Look, channels: Channels, orders: Iterable[tuple[Space, Tensor]], site: str
) -> GroupedLayer:
    fired, block = look.fired[site], look.blocks[site]
    blocks = ceil_div(fired.shape[1], block)
    winners = look.winners(site, blocks)
    space = channels.space_of(look.nodes[site])
    order = next((order for mine, order in orders if mine is space), None)
    before = kept_share(fired, block, winners)
    after = before if order is None else kept_share(fired[:, order], block, winners)
    fixed = ""
    if order is None:
        alone = "neurons are selected one by one" if block == 1 else "it has a single block"
        fixed = (space.fixed if space is not None else "") or alone
    return GroupedLayer(site, block, winners, blocks, before, after, fixed)


@torch.no_grad()
def _reorder(space: Space, order: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    for member in space.members.values():
        state = {} if optimizer is None else optimizer.state.get(member.tensor, {})
        for value in (member.tensor, *state.values()):
            if isinstance(value, Tensor) and value.shape == member.tensor.shape:
                value.copy_(member.ordered(value, order))
