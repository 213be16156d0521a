"""What functions and methods of the dense model become that reshape or average values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from dsgc.programs import dense_rules
from dsgc.programs.recognise import averages_pixels
from dsgc.programs.values import Rows
from dsgc.programs.writer import Writer

__all__ = ["RESHAPES", "Rule", "averaging_rule", "reshape_rule"]

Rule = Callable[[], Any]
RESHAPES: tuple[Any, ...] = (torch.reshape, torch.flatten, "reshape", "view", "flatten")


def averaging_rule(writer: Writer, node: fx.Node, x: Rows, made: Sequence[int]) -> Rule | None:
    """Averages of pixels, as functions; `made` is the shape of the result."""
    if x.matrix:
        return None
    if node.target is F.adaptive_avg_pool2d and len(made) == 4:
        return lambda: dense_rules.adaptive_average(writer, x, (made[2], made[3]))
    if not averages_pixels(node):
        return None
    if len(made) == 4:
        return lambda: dense_rules.adaptive_average(writer, x, (1, 1))
    return lambda: dense_rules.flatten(writer, dense_rules.adaptive_average(writer, x, (1, 1)))


def reshape_rule(writer: Writer, x: Rows, shape: tuple[int, ...]) -> Rule | None:
    """Functions and modules that only make another `shape`, where that needs no kernel."""
    batch = writer.samples
    if shape == (batch, x.size[0], 1, 1) and x.matrix:
        return lambda: _as_map(writer, x)
    if shape == (batch, x.size[0]) and not x.matrix and x.size[1:] == (1, 1):
        return lambda: dense_rules.flatten(writer, x)
    if shape == ((batch, x.size[0]) if x.matrix else (batch, *x.size)):
        return lambda: x
    return None


def _as_map(writer: Writer, x: Rows) -> Rows:
    """A matrix as maps of one pixel."""
    settled = writer.settle(x)
    return Rows(settled.view, settled.size, False, closed=True)
