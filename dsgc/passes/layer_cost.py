"""What a sparse layer costs, as a part of the dense one: whether it pays."""

from __future__ import annotations

from typing import NamedTuple

from dsgc.passes.geometry import Geometry

__all__ = ["WORTH", "Cost", "inference_cost", "layer_cost", "row_cost"]

# The cost of a sparse training step of a layer with its batch norm and ReLU, as a part of the dense
# one, fitted to measurements of networks of equal layers (3x3 and 1x1, 32 to 512 channels, chains
# and residual; AVX-512, two threads). In units of dense work:
WORTH = 0.87
_SEARCH = 0.6  # it happens once, where a dense step has three passes, but ranks and lists as well
_WORK = 1.25  # a multiply-add of a kernel that reads a dense input
_PACKED_WORK = 1.5  # one of a packed kernel, which sorts pairs of blocks first
_TOUCH = 40.0  # multiply-adds that moving one stored value through memory costs
_RELAYOUT = 2.5  # multiply-adds that laying out one weight costs, at every call
_FIXED = 7e7  # multiply-adds that calling the kernels of one layer costs
_NEURON_WORK = 2.2  # one for a single neuron, whatever the input leaves out
_ROW_WORK = 0.55  # one of a linear layer of few rows, which reads weights as they are
_STREAM = 25.0  # multiply-adds for which a dense product of few rows waits, for each weight
_STREAM_MAPS = 80.0  # the same for a convolution, which lays weights out
_STREAM_ROWS = 1024  # rows from which it no longer waits
_FEWEST_ROWS = 16  # and up to which it waits no longer than for so many
# For inference, of the dense layer of a program (dsgc.inference), which has its weights as it wants
# them: both sides wait for those that they read.
_WAIT = 30.0  # multiply-adds for which a kernel waits, for each weight
_WAIT_ROWS = 38.0  # the same for a linear layer of few rows, whose blocks lie apart
_PRODUCT = 1.3  # how much faster than a convolution a dense linear layer of many rows does one
_FIXED_INFERENCE = 8e6  # multiply-adds that calling the kernels of one layer costs


class Cost(NamedTuple):
    """The parts of a sparse layer's cost, relative to the dense layer's."""

    search: float
    work: float
    touch: float
    calls: float

    def __str__(self) -> str:
        names = ("the search", "the remaining work", "moving activations", "weights and calls")
        listed = ", ".join(f"{name} {part:.0%}" for name, part in zip(names, self, strict=True))
        return f"of the time of the dense layer, {listed}"

    def against_products(self) -> Cost:
        """The same relative to a dense linear layer of many rows, which is one product of matrices
        (fitted to blocks of transformers: 192 to 768 channels, 1024 to 4096 rows, 50 and 80 %).
        """
        return Cost(*(_PRODUCT * part for part in self))


def layer_cost(
    geometry: Geometry, search: float, read: float, made: float, rows: int, block: int
) -> Cost:
    """The cost of a convolution, or of a linear layer of many rows.

    Args:
        geometry: of the layer.
        search: its multiply-adds, as a part of the dense ones.
        read: density of the input; 1.0 is a dense map.
        made: density of the output.
        rows: positions of a batch.
        block: of the output.
    """
    work = _work(read, made, block)
    calls = _RELAYOUT / max(1, rows) + _calls(geometry, rows)
    cost = Cost(_SEARCH * search, work, _touch(geometry, read, made), calls)
    if geometry.map_size or rows >= _STREAM_ROWS:
        return cost
    # The dense product waits for its weights as well.
    waits = _STREAM if geometry.window == geometry.in_channels else _STREAM_MAPS
    return Cost(*(part / (1.0 + waits / max(_FEWEST_ROWS, rows)) for part in cost))


def row_cost(geometry: Geometry, search: float, read: float, made: float, rows: int) -> Cost:
    """:func:`layer_cost` of a linear layer of few rows."""
    touch, calls = _touch(geometry, read, made), _calls(geometry, rows)
    return Cost(_SEARCH * search, _ROW_WORK * made, touch, calls)


def inference_cost(
    geometry: Geometry, search: float, read: float, made: float, rows: int, block: int, few: bool
) -> Cost:
    """The cost of a layer in a forward pass alone; `few`: it is a linear layer of few rows.

    The other arguments are those of :func:`layer_cost`.
    """
    rows = max(1, rows)
    reached = (1.0 - (1.0 - made) ** rows) * (1.0 if few else 1.0 - (1.0 - read) ** rows)
    fixed = _FIXED_INFERENCE / (rows * geometry.window * geometry.out_channels)
    cost = Cost(
        _SEARCH * search,
        _ROW_WORK * made if few else _work(read, made, block),
        _touch(geometry, read, made),
        (_WAIT_ROWS if few else _WAIT) * reached / rows + fixed,
    )
    return Cost(*(part / (1.0 + _WAIT / rows) for part in cost))


def _work(read: float, made: float, block: int) -> float:
    if block == 1:
        return made * _NEURON_WORK
    # A packed kernel of which too little is left out reads a dense map instead.
    return made * (_WORK if read == 1.0 else min(_PACKED_WORK * read, _WORK))


def _touch(geometry: Geometry, read: float, made: float) -> float:
    values = geometry.in_channels * read + geometry.out_channels * made
    return _TOUCH * values / (geometry.window * geometry.out_channels)


def _calls(geometry: Geometry, rows: int) -> float:
    return _FIXED / (max(1, rows) * geometry.window * geometry.out_channels)
