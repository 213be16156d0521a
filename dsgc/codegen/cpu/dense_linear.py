"""Generated kernels behind dense_linear: those of few rows, with every block selected."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dsgc.codegen.cpu.layout import check_float32
from dsgc.codegen.cpu.libraries import Libraries, standalone
from dsgc.codegen.cpu.linear import RowLists, data_gradient, products, weight_gradient
from dsgc.codegen.tiles import DENSE_BLOCK, ROW_LANES, suits_few_rows
from dsgc.ops.reference import linear as reference

__all__ = ["dense_linear", "dense_linear_backward"]

_BLOCK = DENSE_BLOCK


def dense_linear(libraries: Libraries, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``dsgc::dense_linear``."""
    check_float32(x)
    check_float32(weight)
    if not _suits(x, weight):
        return reference.dense_linear(x, weight, bias)
    lists = _everything(x.shape[0], weight.shape[0] // _BLOCK)
    slots = products(libraries, _vectors(x), weight, bias, lists, _BLOCK)
    return standalone(slots.view(x.shape[0], -1))


def dense_linear_backward(
    libraries: Libraries,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dsgc::dense_linear_backward``."""
    check_float32(grad)
    if not _suits(x, weight):
        return reference.dense_linear_backward(grad, x, weight, need_x, need_weight, need_bias)
    slots = grad.detach().contiguous().view(-1, _BLOCK)
    lists = _everything(x.shape[0], weight.shape[0] // _BLOCK)
    dx, dweight = x.new_empty(0), x.new_empty(0)
    if need_x:
        dx = data_gradient(libraries, slots, x.shape[0], weight, lists)
    if need_weight:
        dweight = weight_gradient(libraries, slots, _vectors(x), weight, lists)
    return dx, dweight, grad.sum(0) if need_bias else x.new_empty(0)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.shape[0] > 0
        and suits_few_rows(x.shape[0], x.shape[1], weight.shape[0], _BLOCK)
        and weight.is_contiguous()
    )


def _vectors(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(x.shape[0], -1, ROW_LANES)


@functools.lru_cache(maxsize=64)
def _everything(rows: int, blocks: int) -> RowLists:
    """Lists in which every row chose every block: the first slot of each block, and the slot and
    the row of its members. Slot ``row * blocks + block`` is where a plain matrix has it.
    """
    # What lives on must not be an inference tensor.
    with torch.inference_mode(False):
        start = torch.arange(blocks + 1, dtype=torch.int32) * rows
        row = torch.arange(rows, dtype=torch.int32)
        slot = row * blocks + torch.arange(blocks, dtype=torch.int32).unsqueeze(1)
        return RowLists(start, slot.flatten(), row.repeat(blocks))
