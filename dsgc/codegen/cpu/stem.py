"""Generated kernel behind stem_conv2d; its gradients are PyTorch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.layout import Geometry, check_float32, dense_rows
from dsgc.codegen.cpu.libraries import Libraries, standalone
from dsgc.codegen.cpu.weights import plain_columns, tiled_weight
from dsgc.ops.layout import conv_output_size
from dsgc.ops.reference import stem as reference

__all__ = ["stem_conv2d", "stem_conv2d_backward"]


def stem_conv2d(
    libraries: Libraries,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``dsgc::stem_conv2d``."""
    check_float32(x)
    check_float32(weight)
    outputs = weight.shape[0]
    columns = plain_columns(outputs, weight[0].numel())
    if columns is None or x.shape[0] == 0:
        return reference.stem_conv2d(x, weight, bias, stride, padding, dilation)
    target = conv_output_size(x.shape[1:], weight.shape[2:], stride, padding, dilation)
    geometry = Geometry.forward(x.shape[2:], target, weight.shape[2:], stride, padding, dilation)
    rows = dense_rows(x)
    # A row of zeros stands for every pixel outside the image.
    padded = libraries.scratch("stem", (rows.shape[0] + 1, rows.shape[1]))
    padded[:-1], padded[-1] = rows, 0.0
    out = libraries.empty(x.shape[0] * target[0] * target[1], outputs)
    libraries(families.plain_convolution(), f"plain_convolution_{columns}")(
        padded,
        tiled_weight(weight, x.shape[1], columns),
        torch.zeros(outputs, dtype=torch.float32) if bias is None else bias.detach().contiguous(),
        out,
        geometry.table(),
        geometry.source_area,
    )
    return standalone(out.view(x.shape[0], *target, outputs).permute(0, 3, 1, 2))


def stem_conv2d_backward(libraries: Libraries, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``dsgc::stem_conv2d_backward``: dense by nature, and cheap."""
    return reference.stem_conv2d_backward(*arguments)
