"""Weights between PyTorch's layout and blocks."""

from __future__ import annotations

from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.ops.layout import ceil_div

__all__ = ["blocked_weight", "padded_inputs", "plain_weight"]


def blocked_weight(
    libraries: Libraries, weight: Tensor, bi: int, bo: int, blocks: int | None = None
) -> Tensor:
    """``weight`` [K, C, R, S] as [K / bo, R * S, C / bi, bi, bo], zero beyond K; ``blocks`` asks
    for more of K / bo.
    """
    flat = weight.detach().flatten(2)
    outputs, inputs, taps = flat.shape
    shape = (blocks or ceil_div(outputs, bo), taps, ceil_div(inputs, bi), bi, bo)
    out = libraries.scratch("weight", shape)
    libraries(_weight_family(bi, bo), f"block_weights_{bi}_{bo}{_form(flat)}")(flat, out)
    return out


def plain_weight(libraries: Libraries, blocked: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`blocked_weight`, shaped like ``like`` and stored in its order."""
    bi, bo = blocked.shape[3:]
    out = libraries.empty_like(like)
    flat = out.flatten(2)
    libraries(_weight_family(bi, bo), f"unblock_weights_{bi}_{bo}{_form(flat)}")(blocked, flat)
    return out


def _form(weight: Tensor) -> str:
    """Which channels of a flat weight [K, C, taps] lie side by side: the suffix of a kernel."""
    return "_by_input" if weight.stride(1) == 1 else "_by_output" if weight.stride(0) == 1 else ""


def _weight_family(bi: int, bo: int) -> families.Family:
    if bo == 1:
        return families.neuron()
    return families.dense(bo) if bi == 1 else families.convolution(bi, bo)


def padded_inputs(weight: Tensor, channels: int) -> Tensor:
    if weight.shape[1] == channels:
        return weight
    out = weight.new_zeros((weight.shape[0], channels, *weight.shape[2:]))
    out[:, : weight.shape[1]] = weight.detach()
    return out
