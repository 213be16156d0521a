"""The sparse operators as ONNX functions of domain "dsgc", made of standard operators.

onnxscript reads the source of these functions: they are written in its subset of Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import BOOL, FLOAT, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

from dsgc.exporter.onnx_form import DOMAIN, VERSION

__all__ = ["OPSET", "BlockScores", "EstimateOutputs", "MaskBlocks", "SelectWinners"]

OPSET = Opset(DOMAIN, VERSION)


@script(OPSET, default_opset=op)
def EstimateOutputs(  # noqa: N802
    x: FLOAT,
    projection: FLOAT,
    weight: FLOAT,
    unit: FLOAT,
    offset: FLOAT,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> FLOAT:
    """Outputs of a convolution, estimated in the projected space on 8-bit levels."""
    pixels = op.Conv(x, projection)
    peak = op.ReduceMax(op.Abs(pixels), op.Constant(value_ints=[1, 2, 3]), keepdims=1)
    zero = op.Constant(value_float=0.0)
    most = op.Constant(value_float=127.0)
    # A sample that is not finite has levels 0 and a step of NaN: peak - peak is 0 or NaN.
    step = op.Div(op.Add(peak, op.Sub(peak, peak)), most)
    inverse = op.Where(op.Greater(step, zero), op.Div(most, peak), zero)
    rounded = op.Round(op.Mul(pixels, inverse))
    levels = op.Where(op.Greater(inverse, zero), rounded, zero)
    products = op.Conv(levels, weight, strides=strides, pads=pads, dilations=dilations)
    return op.Add(op.Mul(op.Mul(products, unit), step), offset)


@script(OPSET, default_opset=op)
def BlockScores(estimate: FLOAT, block: int) -> FLOAT:  # noqa: N802
    """[N, blocks * block, H, W] -> [N, blocks, H, W]: positive parts added up."""
    shape = op.Shape(estimate)
    size = op.Constant(value_int=block)
    lanes = op.Unsqueeze(size, op.Constant(value_ints=[0]))
    channels = op.Slice(shape, op.Constant(value_ints=[1]), op.Constant(value_ints=[2]))
    parted = op.Concat(
        op.Slice(shape, op.Constant(value_ints=[0]), op.Constant(value_ints=[1])),
        op.Div(channels, lanes),
        lanes,
        op.Slice(shape, op.Constant(value_ints=[2]), op.Constant(value_ints=[4])),
        axis=0,
    )
    blocks = op.Reshape(op.Relu(estimate), parted, allowzero=1)
    return op.ReduceSum(blocks, op.Constant(value_ints=[2]), keepdims=0)


@script(OPSET, default_opset=op)
def SelectWinners(scores: FLOAT, winners: int) -> BOOL:  # noqa: N802
    """The best blocks of every position: bool like scores; ties go to the lower block."""
    infinity = op.Constant(value_float=float("inf"))
    ranked = op.Where(op.IsNaN(scores), infinity, scores)
    count = op.Unsqueeze(op.Constant(value_int=winners), op.Constant(value_ints=[0]))
    values, index = op.TopK(ranked, count, axis=1)
    one = op.Expand(op.Constant(value_float=1.0), op.Shape(values))
    nothing = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    return op.Cast(op.ScatterElements(nothing, index, one, axis=1), to=9)


@script(OPSET, default_opset=op)
def MaskBlocks(y: FLOAT, mask: BOOL, block: int) -> FLOAT:  # noqa: N802
    """y [N, C, H, W] with zeros where mask, bool [N, blocks, H, W], is not set."""
    shape = op.Shape(y)
    size = op.Unsqueeze(op.Constant(value_int=block), op.Constant(value_ints=[0]))
    ones = op.Constant(value_ints=[1, 1])
    lanes = op.Expand(
        op.Unsqueeze(mask, op.Constant(value_ints=[2])), op.Concat(ones, size, ones, axis=0)
    )
    blocks = op.Slice(op.Shape(mask), op.Constant(value_ints=[1]), op.Constant(value_ints=[2]))
    wide = op.Concat(
        op.Slice(shape, op.Constant(value_ints=[0]), op.Constant(value_ints=[1])),
        op.Mul(blocks, size),
        op.Slice(shape, op.Constant(value_ints=[2]), op.Constant(value_ints=[4])),
        axis=0,
    )
    channels = op.Slice(shape, op.Constant(value_ints=[1]), op.Constant(value_ints=[2]))
    kept = op.Slice(
        op.Reshape(lanes, wide, allowzero=1),
        op.Constant(value_ints=[0]),
        channels,
        op.Constant(value_ints=[1]),
    )
    return op.Where(kept, y, op.Constant(value_float=0.0))
