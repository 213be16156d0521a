"""The semantic graph in a form that torch's ONNX exporter reads.

Selectors become calls of ONNX functions; layers and batch norms under a mask become dense ones with
a mask behind them. It is for the exporter alone: run by torch, the calls make nothing but shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.onnx.ops import symbolic

from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.ops.masked import masked_conv2d, masked_linear
from dsgc.ops.normalization import MaskedBatchNorm
from dsgc.passes.patterns import module_of
from dsgc.programs.errors import unsupported
from dsgc.programs.recognise import affine_of
from dsgc.programs.search_rules import check_selection
from dsgc.select import Selector

__all__ = ["DOMAIN", "VERSION", "onnx_form"]

DOMAIN, VERSION = "dsgc", 1


def _function(
    name: str, inputs: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype, **attributes: Any
) -> Tensor:
    """A call of an ONNX function of domain "dsgc"; it only says what comes out."""
    made: Tensor = symbolic(
        f"{DOMAIN}::{name}", inputs, attributes, dtype=dtype, shape=shape, version=VERSION
    )
    return made


def mask_blocks(y: Tensor, mask: Tensor, block: int) -> Tensor:
    """y [N, C, H, W] with zeros where mask, bool [N, blocks, H, W], is not set."""
    return _function("MaskBlocks", (y, mask), y.shape, y.dtype, block=block)


class Search(nn.Module):
    """A selector in eval mode, on constants."""

    projection: Tensor
    weight: Tensor
    unit: Tensor
    offset: Tensor

    def __init__(self, selector: Selector) -> None:
        super().__init__()
        projection, projected, unit, offset, outputs, block, kernel, *window = selector.search()
        self.block, self.winners = block, selector.winners
        self.rows = isinstance(selector.layer, nn.Linear)
        self.size = (selector.in_channels, *selector.kernel)
        stride, padding, dilation = window
        self.strides, self.pads, self.dilations = list(stride), [*padding, *padding], [*dilation]
        # Outputs are filled up to whole blocks: a neuron that is not there is estimated as zero.
        length = ceil_div(outputs, block) * block
        taps = projected[..., :outputs].to(torch.float32).permute(2, 1, 0)
        weight = F.pad(taps, (0, 0, 0, 0, 0, length - outputs))
        self.register_buffer("projection", projection.float().T[..., None, None].contiguous())
        self.register_buffer("weight", weight.reshape(length, -1, *kernel).contiguous())
        self.register_buffer("unit", _column(unit[:outputs], length))
        offset = torch.zeros(outputs, dtype=torch.float32) if offset is None else offset[:outputs]
        self.register_buffer("offset", _column(offset, length))

    def forward(self, x: Tensor) -> Tensor:
        """The mask, bool [N, blocks, H, W]."""
        maps = x.reshape(-1, *self.size) if self.rows else x
        kernel, padding = self.size[1:], self.pads[:2]
        height, width = conv_output_size(
            maps.shape[1:], kernel, self.strides, padding, self.dilations
        )
        count, channels = maps.shape[0], self.weight.shape[0]
        scores = _function(
            "EstimateOutputs",
            (maps, self.projection, self.weight, self.unit, self.offset),
            (count, channels, height, width),
            torch.float32,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
        )
        shape = (count, channels // self.block, height, width)
        if self.block > 1:
            scores = _function("BlockScores", (scores,), shape, torch.float32, block=self.block)
        return _function("SelectWinners", (scores,), shape, torch.bool, winners=self.winners)


def _column(values: Tensor, length: int) -> Tensor:
    filled = F.pad(values.detach().float(), (0, length - values.shape[0]))
    return filled.view(1, -1, 1, 1).contiguous()


class MaskedAffine(nn.Module):
    """A batch norm under a mask in eval mode, on constants."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: MaskedBatchNorm) -> None:
        super().__init__()
        if norm.block is None:
            raise unsupported("a mask of unknown blocks", "name the block of the batch norm")
        scale, shift = affine_of(norm.bn)
        self.block = norm.block
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift.clone())

    def forward(self, y: Tensor, mask: Tensor) -> Tensor:
        """Like y, [N, C, H, W] or [rows, C]."""
        if y.dim() == 2:
            return self._masked((y * self.scale + self.shift)[..., None, None], mask).flatten(1)
        return self._masked(y * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1), mask)

    def _masked(self, y: Tensor, mask: Tensor) -> Tensor:
        return mask_blocks(y, mask, self.block)


def convolution_under_mask(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    block: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """As `dsgc.ops.masked.masked_conv2d`."""
    return mask_blocks(F.conv2d(x, weight, bias, stride, padding, dilation), mask, block)


def linear_under_mask(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, block: int
) -> Tensor:
    """As `dsgc.ops.masked.masked_linear`."""
    y = F.linear(x, weight, bias)
    rows = y.reshape(-1, y.shape[-1], 1, 1)
    return mask_blocks(rows, mask, block).view(y.shape)


def onnx_form(semantic: fx.GraphModule) -> fx.GraphModule:
    """A copy of a semantic graph for torch's ONNX exporter; the graph stays as it is.

    Raises:
        ExportError: a selection cannot be written.
    """
    found = fx.GraphModule(semantic, copy.deepcopy(semantic.graph))
    functions = {masked_conv2d: convolution_under_mask, masked_linear: linear_under_mask}
    for node in found.graph.nodes:
        if node.target in functions:
            node.target = functions[node.target]
        module = module_of(node)
        made: nn.Module | None = None
        if isinstance(module, Selector):
            check_selection(module)
            made = Search(module)
        elif isinstance(module, MaskedBatchNorm):
            made = MaskedAffine(module)
        if made is not None:
            node.target = f"onnx_{node.name}"
            found.add_submodule(node.target, made)
    found.recompile()
    return found.eval()
