"""The reference kernels: every operator in a few lines of plain PyTorch, on any device and in
float64.

They go through dense tensors where that says best what is meant; speed is not their business.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from dsgc.ops.reference.activation import (
    activate,
    activate_backward,
    pack,
    unpack,
    unpack_backward,
)
from dsgc.ops.reference.convolution import conv2d, conv2d_backward
from dsgc.ops.reference.linear import dense_linear, dense_linear_backward
from dsgc.ops.reference.pooling import (
    max_pool2d,
    max_pool2d_backward,
    pool2d,
    pool2d_backward,
)
from dsgc.ops.reference.residual import residual_add, residual_add_backward
from dsgc.ops.reference.selection import drs_scores, select_above, select_winners
from dsgc.ops.reference.statistics import batch_affine, batch_affine_backward
from dsgc.ops.reference.stem import stem_conv2d, stem_conv2d_backward

__all__ = ["KERNELS"]

KERNELS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "activate": activate,
        "activate_backward": activate_backward,
        "batch_affine": batch_affine,
        "batch_affine_backward": batch_affine_backward,
        "conv2d": conv2d,
        "conv2d_backward": conv2d_backward,
        "dense_linear": dense_linear,
        "dense_linear_backward": dense_linear_backward,
        "drs_scores": drs_scores,
        "pack": pack,
        "pool2d": pool2d,
        "pool2d_backward": pool2d_backward,
        "max_pool2d": max_pool2d,
        "max_pool2d_backward": max_pool2d_backward,
        "residual_add": residual_add,
        "residual_add_backward": residual_add_backward,
        "select_above": select_above,
        "select_winners": select_winners,
        "stem_conv2d": stem_conv2d,
        "stem_conv2d_backward": stem_conv2d_backward,
        "unpack": unpack,
        "unpack_backward": unpack_backward,
    }
)
