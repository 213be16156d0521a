"""Generated kernels behind conv2d and its gradients where single neurons are selected (block 1)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import grouped_source
from dsgc.codegen.cpu.layout import Geometry, Selection, blocks_of, by_block
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.weights import blocked_weight, padded_inputs, plain_weight
from dsgc.codegen.tiles import NEURON_DEPTHS, NEURON_LANES
from dsgc.ops.layout import ceil_div
from dsgc.ops.spec import Activation

__all__ = [
    "far_table",
    "neuron_convolution",
    "neuron_data_gradient",
    "neuron_depth",
    "neuron_tile",
    "neuron_weight_gradient",
]

_TILE_BYTES = 96 << 10
_LEAST_POSITIONS = 48  # of a tile: fewer do not pay for fetching the weights of every neuron
_NOWHERE = 1 << 40
_SPLITS = 16  # tasks of a weight gradient, the same for every thread count


def neuron_convolution(
    libraries: Libraries,
    source: Activation,
    weight: Tensor,
    bias: Tensor | None,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    """The selected neurons: [slots, 1]."""
    x = _groups(libraries, source)
    depth = x.shape[2]
    out, neurons = libraries.empty(target.ids.shape[0], 1), weight.shape[0]
    lists = by_block(libraries, target, neurons, geometry.target_area, neuron_tile(geometry, depth))
    if out.shape[0] == 0:
        return out
    libraries(families.neuron(), f"neuron_convolution_{depth}")(
        x,
        _weights(libraries, weight, x.shape[0], depth),
        blocks_of(bias, neurons, 1).view(-1),
        *lists,
        out.view(-1),
        int(lists.start[::neurons].diff().max()),
        far_table(geometry),
        geometry.source_area,
    )
    return out


def neuron_weight_gradient(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    weight: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    """Like ``weight``."""
    x = _groups(libraries, source)
    groups, _, depth, _ = x.shape
    neurons, taps = weight.shape[0], geometry.table().shape[0]
    lists = by_block(libraries, target, neurons, geometry.target_area, neuron_tile(geometry, depth))
    out = libraries.empty(neurons, taps, groups, depth, NEURON_LANES)
    libraries(families.neuron(), f"neuron_weight_gradient_{depth}")(
        x,
        grad.view(-1),
        *lists,
        out,
        max(1, min(neurons, _SPLITS // groups)),
        far_table(geometry),
        geometry.source_area,
    )
    return plain_weight(libraries, out.view(neurons, taps, -1, NEURON_LANES, 1), weight)


def neuron_data_gradient(
    libraries: Libraries,
    grad: Tensor,
    positions: int,
    weight: Tensor,
    target: Selection,
    backward: Geometry,
) -> Tensor:
    """The gradient of every channel of the source's ``positions``: rows [P, width], whole vectors.

    ``backward`` goes from source pixels to target pixels.
    """
    vectors = ceil_div(weight.shape[1], NEURON_LANES)
    depth = neuron_depth(vectors)
    groups = ceil_div(vectors, depth)
    dx = libraries.empty(positions, groups, depth, NEURON_LANES)
    libraries(families.neuron(), f"neuron_data_gradient_{depth}")(
        grad.view(-1),
        target.ids,
        target.rowptr,
        _weights(libraries, weight, groups, depth),
        dx,
        backward.table(),
        backward.source_area,
    )
    return dx.view(positions, groups * depth * NEURON_LANES)


def neuron_depth(vectors: int) -> int:
    """Vectors of a group: the fewest that hold all, or as many as there are kernels for."""
    return next((depth for depth in NEURON_DEPTHS if vectors <= depth), NEURON_DEPTHS[-1])


def _groups(libraries: Libraries, source: Activation) -> Tensor:
    """The activated source as [groups, P + 1, depth, NEURON_LANES]; the last row is zero."""
    block = 1 if source.index is None else source.x.shape[1]
    depth = neuron_depth(ceil_div(max(source.size[0], block), NEURON_LANES))
    rows = grouped_source(libraries, source, depth * NEURON_LANES)
    return rows.view(*rows.shape[:2], depth, NEURON_LANES)


def _weights(libraries: Libraries, weight: Tensor, groups: int, depth: int) -> Tensor:
    """``weight`` [K, C, R, S] as [K, R * S, groups, depth, NEURON_LANES]; a view if it is already
    stored like that.
    """
    outputs, inputs = weight.shape[:2]
    shape = (outputs, -1, groups, depth, NEURON_LANES)
    stored = weight.detach().permute(0, 2, 3, 1)
    if inputs == groups * depth * NEURON_LANES and stored.is_contiguous():
        return stored.view(shape)
    padded = padded_inputs(weight, groups * depth * NEURON_LANES)
    return blocked_weight(libraries, padded, NEURON_LANES, 1).view(shape)


@functools.lru_cache(maxsize=256)
def far_table(geometry: Geometry) -> Tensor:
    """int64 [taps, target pixels]: the source pixel of the same sample, or a number beyond all."""
    table = geometry.table()
    return torch.where(table < 0, _NOWHERE, table.to(torch.int64))


def neuron_tile(geometry: Geometry, depth: int) -> int:
    """Target positions whose source rows, one group of channels, fill the first-level cache."""
    rows = _TILE_BYTES // (4 * depth * NEURON_LANES)
    border = (geometry.kernel[0] - 1) * geometry.source[1]
    return max(_LEAST_POSITIONS, rows - border)
