"""What functions and methods of the dense model become that average pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from dsgc.programs import dense_rules
from dsgc.programs.moving_rules import as_rows
from dsgc.programs.places import is_in_order
from dsgc.programs.recognise import averaged_dimensions
from dsgc.programs.values import Arranged, Rows
from dsgc.programs.writer import Writer

__all__ = ["arranged_averaging_rule", "averaging_rule"]

Rule = Callable[[], Any]


def averaging_rule(writer: Writer, node: fx.Node, x: Rows, made: Sequence[int]) -> Rule | None:
    """Averages of pixels, as functions; `made` is the shape of the result."""
    if x.matrix:
        return None
    if node.target is F.adaptive_avg_pool2d and len(made) == 4:
        return lambda: dense_rules.adaptive_average(writer, x, (made[2], made[3]))
    if averaged_dimensions(node) != [2, 3]:
        return None
    if len(made) == 4:
        return lambda: dense_rules.adaptive_average(writer, x, (1, 1))
    return lambda: dense_rules.flatten(writer, dense_rules.adaptive_average(writer, x, (1, 1)))


def arranged_averaging_rule(
    writer: Writer, node: fx.Node, x: Arranged, made: Sequence[int]
) -> Rule | None:
    """Averages of the pixels of every channel, of maps in another shape, such as [N, C, H * W]."""
    along, count = [one - 1 for one in averaged_dimensions(node)], math.prod(x.rows.size)
    if not along or min(along) < 0 or x.places.numel() != count:
        return None
    others = [one for one in range(x.places.dim()) if one not in along]
    channels = x.rows.size[0]
    averaged = x.places.permute(*others, *along).reshape(channels, -1).sort(1)[0]
    if not is_in_order(averaged) or math.prod(made[1:]) != channels:
        return None

    shape = tuple(made[1:])

    def write() -> Rows | Arranged:
        average = dense_rules.adaptive_average(writer, x.rows, (1, 1))
        return as_rows(writer, Arranged(average, torch.arange(channels).view(shape)))

    return write
