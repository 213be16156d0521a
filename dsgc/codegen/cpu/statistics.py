"""Generated kernels behind batch_affine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import as_dense, as_stored, stored_values
from dsgc.codegen.cpu.layout import check_float32, tasks_for
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.ops.layout import ceil_div

__all__ = ["batch_affine", "batch_affine_backward"]

_INFINITY = float("inf")


def batch_affine(
    libraries: Libraries,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    size: Sequence[int],
    relu: bool,
    over: str,
    eps: float,
) -> tuple[Tensor, ...]:
    """``dsgc::batch_affine``: two passes, so that a mean far from zero costs no precision."""
    check_float32(x)
    values, chosen = as_stored(libraries, x, index, rowptr)
    block = values.shape[1]
    blocks, tasks = ceil_div(size[0], block), tasks_for(values.shape[0])
    found = tuple(torch.empty(size[0], dtype=torch.float32) for _ in range(6))
    libraries(families.blocked(block), f"batch_affine_{block}")(
        values,
        chosen.ids,
        _vector(weight),
        _vector(bias),
        libraries.scratch("partial", (tasks, 2, blocks, block)),
        torch.empty((tasks, blocks), dtype=torch.int32),
        libraries.scratch("center", (blocks, block)),
        *found,
        0.0 if relu else -_INFINITY,
        eps,
        -1 if over == "active" else chosen.positions,
    )
    return found


def batch_affine_backward(
    libraries: Libraries,
    grad: Tensor | None,
    dscale: Tensor | None,
    dshift: Tensor | None,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    size: Sequence[int],
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dsgc::batch_affine_backward``."""
    check_float32(x)
    values, chosen = as_stored(libraries, x, index, rowptr)
    block = values.shape[1]
    out = libraries.empty(*values.shape)
    dweight, dbias = (torch.empty(size[0], dtype=torch.float32) for _ in range(2))
    libraries(families.blocked(block), f"batch_affine_backward_{block}")(
        out.zero_() if grad is None else stored_values(grad, index),
        values,
        chosen.ids,
        _vector(dscale),
        _vector(dshift),
        _vector(weight),
        mean.contiguous(),
        var.contiguous(),
        count.contiguous(),
        libraries.scratch("linear", (2, ceil_div(size[0], block), block)),
        out,
        dweight,
        dbias,
        0.0 if relu else -_INFINITY,
        eps,
    )
    dx = as_dense(out, x.shape[0], size) if index is None else out
    return dx, dweight, dbias


def _vector(vector: Tensor | None) -> Tensor:
    """What a kernel reads of a vector over channels; empty for None."""
    if vector is None:
        return torch.empty(0, dtype=torch.float32)
    check_float32(vector)
    return vector.detach().contiguous()
