"""Remembers what a module was called with, without keeping tensors alive."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["SeenCall"]


class SeenCall:
    """The arguments of a call; its tensors are there as long as somebody else has them."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, self._spec = pytree.tree_flatten((args, kwargs))
        self._leaves = [weakref.ref(x) if isinstance(x, Tensor) else x for x in leaves]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """(args, kwargs) of the call; None without tensors, or when one of them is gone."""
        leaves = [x() if isinstance(x, weakref.ref) else x for x in self._leaves]
        held = sum(isinstance(x, weakref.ref) for x in self._leaves)
        if not held or sum(isinstance(leaf, Tensor) for leaf in leaves) < held:
            return None
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs
