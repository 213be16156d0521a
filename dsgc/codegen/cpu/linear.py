"""Generated kernels behind linear layers of few rows, which read weights as PyTorch stores them."""

from __future__ import annotations

from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import padded_source
from dsgc.codegen.cpu.layout import Geometry, Selection, blocks_of, by_block
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.tiles import ROW_LANES, suits_few_rows
from dsgc.ops.spec import Activation

__all__ = ["is_few_rows", "row_data_gradient", "row_products", "row_weight_gradient"]


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
    target: Selection,
    block: int,
) -> Tensor:
    """The selected blocks of every sample: [slots, block]."""
    out = libraries.empty(target.ids.shape[0], block)
    libraries(families.linear(block), f"row_products_{block}")(
        _rows(libraries, source, target.positions),
        _by_block(weight, block),
        blocks_of(bias, weight.shape[0], block),
        *_lists(libraries, weight, target, block),
        out,
    )
    return out


def row_weight_gradient(
    libraries: Libraries, grad: Tensor, source: Activation, weight: Tensor, target: Selection
) -> Tensor:
    """Like ``weight``; zero for blocks that no sample chose."""
    block = grad.shape[1]
    out = libraries.empty_like(weight)
    libraries(families.linear(block), f"row_weight_gradient_{block}")(
        _rows(libraries, source, target.positions),
        grad,
        *_lists(libraries, weight, target, block),
        _by_block(out, block),
    )
    return out


def row_data_gradient(
    libraries: Libraries, grad: Tensor, source: Activation, weight: Tensor, target: Selection
) -> Tensor:
    """The gradient of every input, selected or not: rows [P, C] of pixels."""
    block, samples = grad.shape[1], target.positions
    out = libraries.empty(samples, weight[0].numel())
    libraries(families.linear(block), f"row_data_gradient_{block}")(
        grad,
        _by_block(weight, block),
        *_lists(libraries, weight, target, block),
        out.view(samples, -1, ROW_LANES),
    )
    channels = source.size[0]
    return out.view(samples, channels, -1).transpose(1, 2).contiguous().view(-1, channels)


def _by_block(weight: Tensor, block: int) -> Tensor:
    return weight.detach().view(weight.shape[0] // block, block, -1, ROW_LANES)


def _lists(
    libraries: Libraries, weight: Tensor, target: Selection, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One list a block, over all samples: each is a single position."""
    lists = by_block(libraries, target, weight.shape[0] // block, 1, tile=max(1, target.positions))
    return lists.start, lists.slot, lists.sample


def _rows(libraries: Libraries, source: Activation, samples: int) -> Tensor:
    """The activated input as [samples, vectors, ROW_LANES], in the order of the weight."""
    rows = padded_source(libraries, source)[:-1, : source.size[0]]
    order = rows.reshape(samples, -1, source.size[0]).transpose(1, 2)
    return order.contiguous().view(samples, -1, ROW_LANES)
