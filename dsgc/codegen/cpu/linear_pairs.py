"""Generated kernels behind linear layers of few rows whose input is packed: pairs of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import apply
from dsgc.codegen.cpu.layout import Selection, blocks_of, packed_selection, part_present
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.linear import RowLists
from dsgc.codegen.tiles import PAIR_BLOCKS, PAIR_STRIP, PAIRS_BELOW
from dsgc.ops.layout import ceil_div
from dsgc.ops.spec import Activation

__all__ = ["pair_data_gradient", "pair_products", "pair_weight_gradient", "takes_pairs"]


def takes_pairs(source: Activation, block: int) -> bool:
    """Whether it pays to go through pairs of an input block and an output block of ``block``.

    The input has to be packed, of single pixels and whole blocks.
    """
    channels, height, width = source.size
    inner = source.x.shape[1]
    if source.rowptr is None or height * width > 1 or channels % inner:
        return False
    few = part_present(source) < PAIRS_BELOW
    return few and inner in PAIR_BLOCKS and block in PAIR_BLOCKS


def pair_products(
    libraries: Libraries,
    source: Activation,
    weight: Tensor,
    bias: Tensor | None,
    lists: RowLists,
    block: int,
) -> Tensor:
    """The selected blocks of every sample: [slots, block]."""
    chosen, bi = packed_selection(libraries, source), source.x.shape[1]
    values = apply(libraries, source.x.contiguous(), chosen.ids, source)
    out = libraries.empty(lists.slot.shape[0], block)
    first = blocks_of(bias, weight.shape[0], block)
    libraries(families.linear_pairs(bi, block), f"pair_products_{bi}_{block}")(
        *(values, chosen.ids, _edges(libraries, chosen, source)),
        *(_by_pairs(weight, bi, block), first, *lists, out),
    )
    return out


def pair_weight_gradient(
    libraries: Libraries, grad: Tensor, source: Activation, weight: Tensor, lists: RowLists
) -> Tensor:
    """Like ``weight``, from ``grad`` [slots, block]; zero for blocks that no sample chose."""
    chosen, (bi, block) = packed_selection(libraries, source), (source.x.shape[1], grad.shape[1])
    values = apply(libraries, source.x.contiguous(), chosen.ids, source)
    out = libraries.empty_like(weight)
    libraries(families.linear_pairs(bi, block), f"pair_weight_gradient_{bi}_{block}")(
        *(values, chosen.ids, _edges(libraries, chosen, source)),
        *(grad, *lists, _by_pairs(out, bi, block)),
    )
    return out


def pair_data_gradient(
    libraries: Libraries, grad: Tensor, source: Activation, weight: Tensor, lists: RowLists
) -> Tensor:
    """The gradient of the blocks that the input has, [values, its block]."""
    chosen, (bi, block) = packed_selection(libraries, source), (source.x.shape[1], grad.shape[1])
    dx = libraries.empty(*source.x.shape)
    libraries(families.linear_pairs(bi, block), f"pair_data_gradient_{bi}_{block}")(
        *(grad, _by_pairs(weight, bi, block), *lists),
        *(chosen.ids, _edges(libraries, chosen, source), dx),
    )
    return dx


def _by_pairs(weight: Tensor, bi: int, bo: int) -> Tensor:
    return weight.detach().view(weight.shape[0] // bo, bo, -1, bi)


def _edges(libraries: Libraries, chosen: Selection, source: Activation) -> Tensor:
    """Where each strip of inputs begins among a sample's values: int32 [strips + 1, samples]."""
    bi, depth = source.x.shape[1], PAIR_STRIP // source.x.shape[1]
    strips = ceil_div(source.size[0] // bi, depth)
    edges = torch.empty((strips + 1, chosen.positions), dtype=torch.int32)
    libraries(families.lists(), "strip_edges")(*chosen, edges, depth)
    return edges
