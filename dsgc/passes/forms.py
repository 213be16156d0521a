"""What lowering knows of a value: a tensor, a selection, or something its readers finish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

__all__ = ["AFTER_NORM", "AFTER_RELU", "Deferred", "Form", "Selection", "Sum"]

AFTER_RELU = {
    "identity": "relu",
    "relu": "relu",
    "affine": "affine_relu",
    "affine_relu": "affine_relu",
}
AFTER_NORM = {"identity": "affine", "relu": "relu_affine"}


@dataclass(frozen=True)
class Selection:
    """A mask in packed form."""

    index: fx.Node
    rowptr: fx.Node


@dataclass(frozen=True)
class Deferred:
    """A value whose readers apply `act`; packed if it has a selection. `shape` is without batch."""

    x: fx.Node
    selection: Selection | None
    act: str
    size: tuple[int, int, int]
    shape: tuple[int, ...]
    block: int = 0
    scale: fx.Node | None = None
    shift: fx.Node | None = None
    again: fx.Node | None = None

    @property
    def is_map(self) -> bool:
        """Whether the dense tensor is [N, C, H, W]; else it is rows [..., C]."""
        return self.shape == self.size

    def arguments(self) -> tuple[Any, ...]:
        """The ACT arguments of an operator."""
        chosen = self.selection
        pair = (None, None) if chosen is None else (chosen.index, chosen.rowptr)
        return (self.x, *pair, self.scale, self.shift, self.act, self.size)


@dataclass(frozen=True)
class Sum:
    """A packed value and a dense map that are added by their only reader, a ReLU."""

    packed: Deferred
    shortcut: fx.Node


Form = fx.Node | Selection | Deferred | Sum
