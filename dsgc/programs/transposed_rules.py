"""How transposed convolutions become kernel calls, on rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsgc.codegen.cpu.layout import Geometry
from dsgc.ops.layout import ceil_div
from dsgc.programs import dense_rules
from dsgc.programs.values import Rows
from dsgc.programs.writer import Writer

__all__ = ["convolution_rule"]


class _Axis(NamedTuple):
    """One axis of a transposed convolution, as a plain one.

    With a stride, only some taps meet an output pixel: those of its *phase*, its place modulo the
    stride. The pixels of all phases are made together, as so many times the channels of a map that
    is smaller by the stride: where windows do not overlap, nothing is multiplied in vain.

    Attributes:
        size: of the smaller map.
        first: the source pixel of the first one that the window begins at.
        taps: extent of the window.
        tap_of: (phase, tap of the window, tap of the weight) where they meet.
    """

    size: int
    first: int
    taps: int
    tap_of: list[tuple[int, int, int]]


def convolution_rule(
    writer: Writer, conv: nn.ConvTranspose2d, x: Rows
) -> Callable[[], Rows] | None:
    """The rule for a transposed convolution without groups, to maps that are not empty."""
    height, width = (_extent(conv, axis, size) for axis, size in enumerate(x.size[1:]))
    if conv.groups != 1 or x.matrix or min(height, width) < 1:
        return None
    return lambda: _convolution(writer, x, conv, (height, width))


def _extent(conv: nn.ConvTranspose2d, axis: int, source: int) -> int:
    padding, kernel = int(conv.padding[axis]), conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    return (source - 1) * conv.stride[axis] - 2 * padding + kernel + conv.output_padding[axis] + 1


def _axis(conv: nn.ConvTranspose2d, axis: int, target: int) -> _Axis:
    stride, kernel = conv.stride[axis], conv.kernel_size[axis]
    padding, dilation = int(conv.padding[axis]), conv.dilation[axis]
    meeting = [
        (phase, (phase + padding - tap * dilation) // stride, tap)
        for phase in range(stride)
        for tap in range(kernel)
        if (phase + padding - tap * dilation) % stride == 0
    ]
    first = min(offset for _, offset, _ in meeting)
    taps = max(offset for _, offset, _ in meeting) - first + 1
    tap_of = [(phase, offset - first, tap) for phase, offset, tap in meeting]
    return _Axis(ceil_div(target, stride), first, taps, tap_of)


def _convolution(
    writer: Writer, x: Rows, conv: nn.ConvTranspose2d, target: tuple[int, int]
) -> Rows:
    down, across = _axis(conv, 0, target[0]), _axis(conv, 1, target[1])
    strides, outputs = (conv.stride[0], conv.stride[1]), conv.out_channels
    geometry = Geometry(
        (x.size[1], x.size[2]),
        (down.size, across.size),
        (down.taps, across.taps),
        (1, 1),
        (down.first, across.first),
        (1, 1),
        (1, 1),
    )
    weight = _by_phase(conv.weight.detach(), (down, across), strides)
    bias = None if conv.bias is None else conv.bias.detach().repeat(strides[0] * strides[1])
    made = dense_rules.convolution_over(writer, x, weight, bias, geometry)
    if strides == (1, 1):
        return made
    return _unfolded(writer, made, (outputs, target[0], target[1]), strides)


def _by_phase(weight: Tensor, axes: tuple[_Axis, _Axis], strides: tuple[int, int]) -> Tensor:
    """`weight` [C, K, kh, kw] as that of a plain convolution [phases * K, C, taps, taps]."""
    inputs, outputs = weight.shape[:2]
    down, across = axes
    made = weight.new_zeros(*strides, outputs, inputs, down.taps, across.taps)
    for row_phase, row, row_tap in down.tap_of:
        for phase, column, tap in across.tap_of:
            made[row_phase, phase, :, :, row, column] = weight[:, :, row_tap, tap].T
    return made.flatten(0, 2)


def _unfolded(
    writer: Writer, value: Rows, size: tuple[int, int, int], strides: tuple[int, int]
) -> Rows:
    """Maps of `size` whose pixels lie in channels: those of a phase behind those of another."""
    x = writer.settle(value)
    made = writer.rows(size)
    rows, columns = torch.arange(size[1])[:, None], torch.arange(size[2])
    pixels = rows // strides[0] * x.size[2] + columns // strides[1]
    skip = (rows % strides[0] * strides[1] + columns % strides[1]) * size[0]
    writer.gather(x, made, pixels.flatten(), skip.flatten(), torch.arange(size[0]))
    return made
