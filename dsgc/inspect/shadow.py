"""A model without data: its shapes, its code, and nothing of its size in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

__all__ = ["Shadow", "shadow_of"]


@dataclass(frozen=True)
class Shadow:
    """A copy of a model whose parameters and buffers are fake, and inputs for it."""

    model: nn.Module
    args: tuple[Any, ...]
    mode: FakeTensorMode

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, operators compute shapes only."""
        with self.mode, torch.random.fork_rng(devices=[]):
            yield


def shadow_of(model: nn.Module, args: tuple[Any, ...]) -> Shadow:
    """The shadow of a model called with `args`; nothing of either is changed or copied.

    Inputs follow a model on the meta device there.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        return mode.from_tensor(tensor.detach(), static_shapes=True)

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(fake(parameter), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = fake(buffer)
    first = next(model.parameters(), None)
    on_meta = first is not None and first.device.type == "meta"

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return fake(leaf.to("meta") if on_meta else leaf)

    return Shadow(copy.deepcopy(model, memo), pytree.tree_map(moved, args), mode)
