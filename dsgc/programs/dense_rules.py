"""How the dense operators of a lowered graph become kernel calls, on rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.layout import Geometry
from dsgc.codegen.cpu.pooling import pool_weights, pool_window
from dsgc.codegen.cpu.weights import plain_columns, tiled_weight
from dsgc.codegen.tiles import (
    DENSE_BLOCK,
    ROW_LANES,
    SKIP_SAMPLES,
    SKIP_STRIP,
)
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.passes.patterns import Pool
from dsgc.programs.program import View
from dsgc.programs.sizes import BATCH
from dsgc.programs.values import Rows
from dsgc.programs.writer import Writer, filled

__all__ = [
    "Window",
    "adaptive_average",
    "affine",
    "convolution",
    "convolution_over",
    "convolved",
    "depthwise",
    "flatten",
    "linear",
    "pool",
    "read_input",
    "relu",
    "write_output",
]

Window = tuple[Sequence[int], Sequence[int], Sequence[int]]  # stride, padding, dilation


def read_input(writer: Writer, shape: Sequence[int]) -> tuple[Rows, View]:
    """An input [N, C, H, W] or [N, C] as rows, and the buffer that it comes in."""
    size = (shape[1], *(tuple(shape[2:]) or (1, 1)))
    made = writer.rows((size[0], size[1], size[2]), len(shape) == 2)
    given = writer.program.buffer(BATCH, size[0], size[1] * size[2])
    writer.program.call(families.rows(), "rows_of_maps", given, made.view)
    return made, given.seen_as(BATCH, *shape[1:])


def write_output(writer: Writer, value: Rows) -> View:
    """A result in PyTorch's order."""
    x = writer.settle(value)
    channels, height, width = x.size
    out = writer.program.buffer(BATCH, channels, height * width)
    _maps(writer, x, out)
    return out.seen_as(BATCH, channels) if x.matrix else out.seen_as(BATCH, *x.size)


def _maps(writer: Writer, x: Rows, out: View) -> None:
    rows = x.view.seen_as(x.positions, x.width)
    writer.program.call(families.rows(), "maps_of_rows", rows, out)


def flatten(writer: Writer, value: Rows) -> Rows:
    """[N, C, H, W] as [N, C * H * W] in PyTorch's order."""
    x = writer.settle(value)
    channels, area = x.size[0], x.size[1] * x.size[2]
    if area == 1:
        return replace(x, matrix=True)
    features = channels * area
    flat = writer.program.buffer(BATCH, channels, area)
    _maps(writer, x, flat)
    made = writer.rows((features, 1, 1), True)
    writer.program.call(
        families.rows(), "rows_of_maps", flat.seen_as(BATCH, features, 1), made.view
    )
    return made


def relu(writer: Writer, value: Rows) -> Rows:
    """A ReLU, left to the next reader."""
    return value.after_relu() or replace(writer.settle(value), act="relu", closed=False)


def affine(writer: Writer, value: Rows, scale: Tensor, shift: Tensor) -> Rows:
    """A batch norm in eval mode, left to the next reader."""
    x = value if value.act == "identity" else writer.settle(value)
    return replace(x, act="affine", scale=scale, shift=shift, closed=False)


def convolved(x: Rows, weight: Tensor, window: Window) -> Geometry:
    """Which pixels of `x` a convolution with `weight` [K, C, kh, kw] reads."""
    kernel = weight.shape[2:]
    target = conv_output_size(x.size, kernel, *window)
    return Geometry.forward(x.size[1:], target, kernel, *window)


def convolution(
    writer: Writer,
    value: Rows,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
) -> Rows:
    """A dense convolution."""
    return convolution_over(writer, value, weight, bias, convolved(value, weight, window))


def convolution_over(
    writer: Writer, value: Rows, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Rows:
    """A convolution with `weight` [K, C, kh, kw], whose taps touch the pixels of `geometry`."""
    x, outputs = writer.settle(value), weight.shape[0]
    wide = ceil_div(outputs, DENSE_BLOCK) * DENSE_BLOCK
    columns = plain_columns(wide, x.width * math.prod(geometry.kernel)) or DENSE_BLOCK
    made = replace(writer.rows((outputs, *geometry.target), width=wide), closed=False)
    writer.program.call(
        families.plain_convolution(),
        f"plain_convolution_{columns}",
        x.view,
        writer.constant(tiled_weight(weight, x.width, columns), "weight"),
        writer.bias(bias, outputs, DENSE_BLOCK, flat=True),
        made.view.seen_as(made.positions, wide),
        writer.table(geometry),
        geometry.source_area,
    )
    return made


def depthwise(
    writer: Writer,
    value: Rows,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
) -> Rows:
    """A convolution of every channel by itself: `weight` [C, 1, kh, kw]."""
    x, channels = writer.settle(value), weight.shape[0]
    geometry = convolved(x, weight, window)
    made = writer.rows((channels, *geometry.target), width=x.width)
    taps = F.pad(weight.detach().reshape(channels, -1).T, (0, x.width - channels)).contiguous()
    writer.program.call(
        families.elementwise(),
        "filter_rows",
        x.view,
        writer.constant(taps, "weight"),
        writer.constant(filled(torch.zeros(channels) if bias is None else bias, x.width), "bias"),
        made.view,
        writer.table(geometry),
        geometry.source_area,
    )
    return made


def linear(writer: Writer, value: Rows, weight: Tensor, bias: Tensor | None) -> Rows:
    """A dense linear layer on a matrix."""
    x = writer.wide(value)
    outputs, inputs = weight.shape
    if writer.samples <= SKIP_SAMPLES and outputs >= SKIP_STRIP:
        return _skipping_linear(writer, x, weight, bias)
    blocks = ceil_div(outputs, DENSE_BLOCK)
    stored = F.pad(weight.detach(), (0, x.width - inputs, 0, blocks * DENSE_BLOCK - outputs))
    program, vectors = writer.program, x.width // ROW_LANES
    start = program.buffer(blocks + 1, dtype="int32")
    slot, sample = (program.buffer(BATCH * blocks, dtype="int32") for _ in range(2))
    program.call(families.rows(), "every_block", start, slot, sample, BATCH)
    made = replace(writer.rows((outputs, 1, 1), True, blocks * DENSE_BLOCK), closed=False)
    program.call(
        families.linear(DENSE_BLOCK),
        f"row_products_{DENSE_BLOCK}",
        x.view.seen_as(BATCH, vectors, ROW_LANES),
        writer.constant(stored.view(blocks, DENSE_BLOCK, vectors, ROW_LANES), "weight"),
        writer.bias(bias, outputs, DENSE_BLOCK),
        *(start, slot, sample),
        made.view.seen_as(BATCH * blocks, DENSE_BLOCK),
    )
    return made


def _skipping_linear(writer: Writer, x: Rows, weight: Tensor, bias: Tensor | None) -> Rows:
    """A linear layer that reads no weight of an input that is zero: worth it for few samples."""
    outputs, inputs = weight.shape
    strips, program = ceil_div(outputs, SKIP_STRIP), writer.program
    stored = F.pad(weight.detach(), (0, x.width - inputs, 0, strips * SKIP_STRIP - outputs))
    stored = stored.view(strips, SKIP_STRIP, x.width).transpose(1, 2)
    vectors = (strips, SKIP_STRIP // ROW_LANES, ROW_LANES)
    index, count = (
        program.buffer(BATCH, x.width, dtype="int32"),
        program.buffer(BATCH, dtype="int32"),
    )
    rows = x.view.seen_as(BATCH, x.width)
    program.call(families.skipping(), "nonzero_columns", rows, index, count)
    made = replace(writer.rows((outputs, 1, 1), True, strips * SKIP_STRIP), closed=False)
    program.call(
        families.skipping(),
        "skip_products",
        *(rows, index, count),
        writer.constant(stored.reshape(strips, x.width, *vectors[1:]), "weight"),
        writer.bias(bias, outputs, SKIP_STRIP).seen_as(*vectors),
        made.view.seen_as(BATCH, *vectors),
    )
    return made


def pool(writer: Writer, value: Rows, what: Pool) -> Rows:
    """Max or average pooling."""
    window = what.kernel, what.stride, what.padding
    geometry = pool_window(value.size, *window, what.ceil_mode)
    weights = pool_weights(geometry, what.padding, what.count_include_pad)
    table = geometry.table()
    return _pooled(writer, value, what.mode, table, weights, geometry.target)


def adaptive_average(writer: Writer, value: Rows, target: tuple[int, int]) -> Rows:
    """Average pooling to `target` pixels, over windows that may differ in size."""
    spans = [
        [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
        for size, wanted in zip(value.size[1:], target, strict=True)
    ]
    width = value.size[2]
    windows = [
        [row * width + column for row in range(*down) for column in range(*across)]
        for down in spans[0]
        for across in spans[1]
    ]
    taps = max(len(pixels) for pixels in windows)
    table = torch.tensor([pixels + [-1] * (taps - len(pixels)) for pixels in windows])
    weights = torch.tensor([1.0 / len(pixels) for pixels in windows], dtype=torch.float32)
    return _pooled(writer, value, "avg", table.T.to(torch.int32).contiguous(), weights, target)


def _pooled(
    writer: Writer,
    value: Rows,
    mode: str,
    table: Tensor,
    weights: Tensor,
    target: Sequence[int],
) -> Rows:
    x = writer.settle(value)
    made = writer.rows((x.size[0], target[0], target[1]), width=x.width)
    writer.program.call(
        families.rows(),
        f"{mode}_pool_rows",
        x.view,
        writer.constant(weights, "pool_weight"),
        made.view,
        writer.program.constant(table, "table"),
        math.prod(x.size[1:]),
    )
    return made
