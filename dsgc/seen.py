"""What a module was called with: its leaves, and a memory of them that keeps no tensor alive."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["SeenCall", "copies_of", "has_only_tensors", "leaves_of"]

_TENSORS = {Tensor}


def has_only_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call has nothing but tensors, by position: there is no structure to look into."""
    return not kwargs and _TENSORS.issuperset(map(type, args))  # every call asks: no loop


def leaves_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All that a call is made with, whatever structures it comes in."""
    return list(args) if has_only_tensors(args, kwargs) else pytree.tree_leaves((args, kwargs))


def copies_of(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with tensors of its own, for code that may write to them."""
    copied: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
        Tensor, _copy, (args, kwargs)
    )
    return copied


def _copy(tensor: Tensor) -> Tensor:
    if not tensor.is_leaf:
        return tensor.clone()
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


class SeenCall:
    """The arguments of a call; its tensors are there as long as somebody else has them."""

    _leaves: list[Any]

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._spec: pytree.TreeSpec | None = None
        if has_only_tensors(args, kwargs):
            self._leaves = list(map(weakref.ref, args))
            return
        leaves, self._spec = pytree.tree_flatten((args, kwargs))
        self._leaves = [weakref.ref(x) if isinstance(x, Tensor) else x for x in leaves]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """(args, kwargs) of the call; None without tensors, or when one of them is gone."""
        leaves = [x() if isinstance(x, weakref.ref) else x for x in self._leaves]
        held = sum(isinstance(x, weakref.ref) for x in self._leaves)
        if not held or sum(isinstance(leaf, Tensor) for leaf in leaves) < held:
            return None
        if self._spec is None:
            return tuple(leaves), {}
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs
