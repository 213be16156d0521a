"""Generated kernels behind residual_add and its gradient."""

from __future__ import annotations

from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import apply_backward, as_dense, unpack, unpack_backward
from dsgc.codegen.cpu.layout import blocks_of, check_float32, dense_rows, limits, packed_selection
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.ops.layout import channels_last
from dsgc.ops.residual import check_shortcut
from dsgc.ops.spec import Activation

__all__ = ["residual_add", "residual_add_backward"]

_INFINITY = float("inf")


def residual_add(libraries: Libraries, *arguments: object) -> Tensor:
    """``dsgc::residual_add``."""
    *given, shortcut, relu = arguments
    source = Activation(*given)  # type: ignore[arg-type]
    if not isinstance(shortcut, Tensor):
        raise TypeError("the shortcut is not a tensor")
    check_shortcut(shortcut, source.size)
    check_float32(shortcut)
    if not _is_whole(source):
        total = unpack(libraries, *given).add_(shortcut)
        return total.relu_() if relu else total
    check_float32(source.x)
    chosen, block, channels = packed_selection(libraries, source), source.x.shape[1], source.size[0]
    out = libraries.empty(chosen.positions, channels)
    libraries(families.residual(block), f"residual_add_{block}")(
        source.x.contiguous(),
        *chosen,
        blocks_of(source.scale, channels, block, 1.0),
        blocks_of(source.shift, channels, block),
        dense_rows(shortcut),
        out,
        *limits(source.act),
        0.0 if relu else -_INFINITY,
    )
    return as_dense(out, shortcut.shape[0], source.size, block)


def residual_add_backward(
    libraries: Libraries, grad: Tensor, *arguments: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``dsgc::residual_add_backward``."""
    *given, y = arguments
    source = Activation(*given)  # type: ignore[arg-type]
    if not isinstance(y, Tensor):
        raise TypeError("the result is not a tensor")
    if not _is_whole(source):
        inner = channels_last(grad.masked_fill(y <= 0, 0))
        return *unpack_backward(libraries, inner, *given), inner
    check_float32(grad)
    chosen, block = packed_selection(libraries, source), source.x.shape[1]
    inner = libraries.empty(chosen.positions, source.size[0])
    values = libraries.empty(*source.x.shape)
    libraries(families.residual(block), f"residual_add_backward_{block}")(
        dense_rows(grad), dense_rows(y), *chosen, inner, values
    )
    found = apply_backward(libraries, values, source.x.contiguous(), chosen.ids, source, own=True)
    return *found, as_dense(inner, y.shape[0], source.size, block)


def _is_whole(source: Activation) -> bool:
    """Whether it is packed, and a position a number of whole blocks of more than one channel."""
    block = source.x.shape[1]
    return source.rowptr is not None and block > 1 and source.size[0] % block == 0
