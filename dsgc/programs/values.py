"""What the exporter knows of a value of the lowered graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from dsgc.codegen.tiles import DENSE_BLOCK
from dsgc.ops.layout import ceil_div
from dsgc.programs.program import View
from dsgc.programs.sizes import BATCH, Size

__all__ = ["Arranged", "Chosen", "Packed", "Rows", "Source", "is_live", "row_width"]

_AFTER_RELU = {"identity": "relu", "relu": "relu", "affine": "affine_relu"}
_FEW = 4  # channels that are not filled up: those of an image


def row_width(channels: int) -> int:
    """Lanes of a row that holds `channels`: whole vectors, unless it is an image."""
    return channels if channels <= _FEW else ceil_div(channels, DENSE_BLOCK) * DENSE_BLOCK


@dataclass(frozen=True, eq=False)
class Rows:
    """A dense map or matrix as rows [positions + 1, width], whose readers apply `act`.

    Attributes:
        view: [positions + 1, width]; lanes beyond the last channel are zero.
        size: (C, H, W); H and W are 1 for a matrix [N, C].
        matrix: whether the model sees [N, C] rather than [N, C, H, W].
        act, scale, shift: as in :class:`dsgc.ops.Activation`; scale and shift are [C].
        closed: whether the last row is zero.
        fleeting: nobody reads the values but with one and the same `act` applied: that may be done
            in place.
    """

    view: View
    size: tuple[int, int, int]
    matrix: bool = False
    act: str = "identity"
    scale: Tensor | None = None
    shift: Tensor | None = None
    closed: bool = False
    fleeting: bool = False

    @property
    def width(self) -> int:
        """Lanes of a row."""
        extent = self.view.shape[-1].value
        if not isinstance(extent, int):
            raise TypeError("rows of unknown width")
        return extent

    @property
    def positions(self) -> Size:
        """Rows without the one of zeros."""
        return BATCH * (self.size[1] * self.size[2])

    def after_relu(self) -> Rows | None:
        """With a ReLU behind; None if what is to be applied has to be applied first."""
        if self.act not in _AFTER_RELU:
            return None
        return replace(self, act=_AFTER_RELU[self.act])


@dataclass(frozen=True, eq=False)
class Arranged:
    """A map or matrix that the model sees in another shape, such as [N, H, W, C], or
    [N, groups, C / groups, H, W] on the way to another order of channels. Nothing is moved yet.

    Attributes:
        rows: where the values are.
        places: int64, of the shape of one sample: which of the C * H * W values of `rows` stands
            there; -1 is zero.
    """

    rows: Rows
    places: Tensor


@dataclass(frozen=True, eq=False)
class Chosen:
    """A selection as lists: ids [slots] and rowptr [positions + 1].

    Attributes:
        positions: how many there are.
        slots: how many blocks are chosen of all positions together.
        widest: the most blocks that a position may have.
        usual: the part of the blocks that the example's positions have, 0 to 1.
    """

    ids: View
    rowptr: View
    positions: Size
    slots: Size
    widest: int
    usual: float


@dataclass(frozen=True, eq=False)
class Packed:
    """Values of the blocks of a selection: [slots, block]."""

    view: View
    block: int


class Source(NamedTuple):
    """The arguments of an operator that say what it reads: :class:`dsgc.ops.Activation`."""

    x: Rows | Packed
    chosen: Chosen | None
    scale: Tensor | None
    shift: Tensor | None
    act: str
    size: tuple[int, int, int]


def is_live(value: Any) -> bool:
    """Whether a value, or a part of it, changes with the inputs."""
    parts = value if isinstance(value, tuple) else (value,)
    return any(isinstance(part, (Rows, Packed, Chosen, Arranged)) for part in parts)
