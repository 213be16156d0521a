"""Bytes kept for backward, by the layer that made them: of real tensors, or expected of fake ones.

Fake tensors have shapes and no data. Where a shape depends on data (how many blocks a pooling
window brings together), it is an unknown, for which the number that independent selections would
give is put in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from torch import SymInt, Tensor, fx

from dsgc.ops.layout import pool_output_size
from dsgc.passes.mark_layers import belongs_to
from dsgc.passes.patterns import module_of
from dsgc.watch import Watched, label_of

__all__ = ["KeptBytes"]


class KeptBytes:
    """Counts the distinct storages that autograd keeps, each whole, by layer.

    A storage belongs to the layer whose node made it, "" to what is before the first layer.

    Args:
        permanent: tensors that exist anyway: parameters and buffers.
    """

    def __init__(self, permanent: Iterable[Tensor]) -> None:
        # Alive, so that no address is given out again; so are what is made and what is kept.
        self._known = [tensor.detach() for tensor in permanent]
        self._permanent = {_address(tensor) for tensor in self._known}
        self._maker: dict[int, str] = {}
        self._kept: dict[int, tuple[str, Tensor]] = {}
        self._made: list[Tensor] = []
        self._now: list[fx.Node] = []
        self._unknown: dict[Any, int] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Within, what autograd keeps is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)

    def runner(self, gm: fx.GraphModule) -> Watched:
        """Runs `gm` so that it is known what made which tensor."""
        watched = Watched(gm, lambda node, _: self._now.append(node), self._end, self._note)
        self._running = watched
        return watched

    def _end(self, node: fx.Node, direction: str) -> None:
        self._now.pop()

    def _note(self, node: fx.Node, tensor: Tensor) -> None:
        if label_of(node) == "getitem":  # its tuple was noted when it was made
            return
        entries = tensor.shape[0] if tensor.dim() else 0
        if isinstance(entries, SymInt) and _symbol(entries) not in self._unknown:
            self._unknown[_symbol(entries)] = self._expected_entries(node)
        self._made.append(tensor)
        self._maker.setdefault(_address(tensor), belongs_to(node))

    def _keep(self, tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in self._permanent and address not in self._kept:
            self._kept[address] = (belongs_to(self._now[-1]) if self._now else "", tensor.detach())
        return tensor

    def by_layer(self) -> dict[str, int]:
        """Bytes by layer."""
        found: dict[str, int] = {}
        for address, (inside, tensor) in self._kept.items():
            layer = self._maker.get(address, inside)
            found[layer] = found.get(layer, 0) + self._number(tensor.untyped_storage().nbytes())
        return found

    def _number(self, size: int | SymInt) -> int:
        if not isinstance(size, SymInt):
            return size
        return int(size.node.expr.subs(self._unknown))

    def _expected_entries(self, node: fx.Node) -> int:
        """How many entries a packed value of unknown length is expected to have."""
        if label_of(node) == "pool2d":
            return self._expected_union(node)
        selector = getattr(module_of(node), "selector", None)
        read = [self._running.env.get(one) for one in node.args if isinstance(one, fx.Node)]
        rowptrs = [self._number(one.shape[0]) for one in read if _is_rowptr(one)]
        if selector is not None and rowptrs:
            return max(1, int((rowptrs[0] - 1) * selector.blocks * selector.density))
        return max(rowptrs, default=1)

    def _expected_union(self, node: fx.Node) -> int:
        """Blocks that at least one position of a window has, of independent selections."""
        given: list[Any] = [
            self._running.env[one] if isinstance(one, fx.Node) else one for one in node.args
        ]
        x, _, rowptr, _, _, _, size, _, kernel, *window, _ = given
        blocks = math.ceil(size[0] / x.shape[1])
        positions = self._number(rowptr.shape[0]) - 1
        density = self._number(x.shape[0]) / max(1, positions * blocks)
        images = positions // (size[1] * size[2])
        windows = images * math.prod(pool_output_size(size, kernel, *window))
        return int(windows * blocks * (1.0 - (1.0 - density) ** math.prod(kernel)))


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _symbol(size: SymInt) -> Any:
    return size.node.expr


def _is_rowptr(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 1 and value.dtype == torch.int32
