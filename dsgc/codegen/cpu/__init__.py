"""Operators of namespace ``dsgc_cpu``: the schemas of :mod:`dsgc.ops`, carried out by generated
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dsgc.codegen.cpu import (
    activation,
    convolution,
    convolution_backward,
    dense_linear,
    map_pooling,
    pooling,
    residual,
    selection,
    statistics,
    stem,
)
from dsgc.codegen.cpu.libraries import Libraries

__all__ = ["Libraries", "kernels"]

_OPERATORS: tuple[Callable[..., Any], ...] = (
    activation.activate,
    activation.activate_backward,
    activation.pack,
    activation.unpack,
    activation.unpack_backward,
    residual.residual_add,
    residual.residual_add_backward,
    statistics.batch_affine,
    statistics.batch_affine_backward,
    convolution.conv2d,
    convolution_backward.conv2d_backward,
    pooling.pool2d,
    pooling.pool2d_backward,
    map_pooling.max_pool2d,
    map_pooling.max_pool2d_backward,
    selection.drs_scores,
    selection.select_winners,
    selection.select_above,
    stem.stem_conv2d,
    stem.stem_conv2d_backward,
    dense_linear.dense_linear,
    dense_linear.dense_linear_backward,
)


def kernels(libraries: Libraries) -> Mapping[str, Callable[..., Any]]:
    """Every operator by name, bound to ``libraries``."""
    return {operator.__name__: partial(operator, libraries) for operator in _OPERATORS}
