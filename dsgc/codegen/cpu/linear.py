"""Generated kernels behind linear layers of few rows, which read weights as PyTorch stores them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import padded_source
from dsgc.codegen.cpu.layout import Geometry, Selection, blocks_of, by_block
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.tiles import ROW_LANES, suits_few_rows
from dsgc.ops.spec import Activation

__all__ = [
    "RowLists",
    "data_gradient",
    "is_few_rows",
    "products",
    "row_data_gradient",
    "row_lists",
    "row_products",
    "row_weight_gradient",
    "weight_gradient",
]


class RowLists(NamedTuple):
    """Who chose each block: where its members begin in the two others, their slots and samples."""

    start: Tensor
    slot: Tensor
    sample: Tensor


def is_few_rows(weight: Tensor, target: Selection, block: int, geometry: Geometry) -> bool:
    """Whether ``weight`` [K, C, R, S] meets few whole samples, and in an order that suits.

    Beyond ``FEW_ROWS`` samples it pays to lay weights out in blocks, as packed kernels can then
    skip what the input leaves out.
    """
    return (
        geometry.target == (1, 1)
        and geometry.source == geometry.kernel
        and geometry.off == (0, 0)
        and geometry.step == (1, 1)
        and target.positions > 0
        and suits_few_rows(target.positions, weight[0].numel(), weight.shape[0], block)
        and weight.is_contiguous()
    )


def row_products(
    libraries: Libraries,
    source: Activation,
    weight: Tensor,
    bias: Tensor | None,
    lists: RowLists,
    block: int,
) -> Tensor:
    """The selected blocks of every sample: [slots, block]."""
    return products(libraries, _rows(libraries, source), weight, bias, lists, block)


def row_weight_gradient(
    libraries: Libraries, grad: Tensor, source: Activation, weight: Tensor, lists: RowLists
) -> Tensor:
    """Like ``weight``; zero for blocks that no sample chose."""
    return weight_gradient(libraries, grad, _rows(libraries, source), weight, lists)


def row_data_gradient(
    libraries: Libraries, grad: Tensor, samples: int, weight: Tensor, lists: RowLists
) -> Tensor:
    """The gradient of every input, selected or not: rows [P, C] of pixels."""
    channels = weight.shape[1]
    out = data_gradient(libraries, grad, samples, weight, lists)
    return out.view(samples, channels, -1).transpose(1, 2).contiguous().view(-1, channels)


def products(
    libraries: Libraries,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lists: RowLists,
    block: int,
) -> Tensor:
    """[slots, block], from ``rows`` [samples, vectors, ROW_LANES]."""
    out = libraries.empty(lists.slot.shape[0], block)
    libraries(families.linear(block), f"row_products_{block}")(
        rows, _by_block(weight, block), blocks_of(bias, weight.shape[0], block), *lists, out
    )
    return out


def weight_gradient(
    libraries: Libraries, grad: Tensor, rows: Tensor, weight: Tensor, lists: RowLists
) -> Tensor:
    """Like ``weight``, from ``grad`` [slots, block] and ``rows`` [samples, vectors, ROW_LANES]."""
    block = grad.shape[1]
    out = libraries.empty_like(weight)
    libraries(families.linear(block), f"row_weight_gradient_{block}")(
        rows, grad, *lists, _by_block(out, block)
    )
    return out


def data_gradient(
    libraries: Libraries, grad: Tensor, samples: int, weight: Tensor, lists: RowLists
) -> Tensor:
    """[samples, inputs], in the order of the weight, from ``grad`` [slots, block]."""
    block = grad.shape[1]
    out = libraries.empty(samples, weight[0].numel())
    libraries(families.linear(block), f"row_data_gradient_{block}")(
        grad, _by_block(weight, block), *lists, out.view(samples, -1, ROW_LANES)
    )
    return out


def _by_block(weight: Tensor, block: int) -> Tensor:
    return weight.detach().view(weight.shape[0] // block, block, -1, ROW_LANES)


def row_lists(libraries: Libraries, weight: Tensor, target: Selection, block: int) -> RowLists:
    """One list a block, over all samples: each is a single position."""
    found = by_block(libraries, target, weight.shape[0] // block, 1, tile=max(1, target.positions))
    return RowLists(found.start, found.slot, found.sample)


def _rows(libraries: Libraries, source: Activation) -> Tensor:
    """The activated input as [samples, vectors, ROW_LANES], in the order of the weight."""
    channels, height, width = source.size
    rows = padded_source(libraries, source)[:-1, :channels]
    order = rows.reshape(-1, height * width, channels).transpose(1, 2)
    return order.contiguous().view(order.shape[0], -1, ROW_LANES)
