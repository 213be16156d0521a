"""The meaning of every dsgc operator: schema, shapes, gradient, and a reference kernel in plain
PyTorch.

Importing this package defines the operators under `torch.ops.dsgc` with the reference kernels.
Generated kernels come under a namespace of their own, with the same schemas and gradients, by
`register`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dsgc.ops import (
    activation,
    convolution,
    linear,
    pooling,
    residual,
    selection,
    statistics,
    stem,
)
from dsgc.ops.layout import (
    ceil_div,
    conv_output_size,
    expand_index,
    expand_mask,
    is_bitmask,
    mask_to_selection,
    pool_output_size,
    selection_to_mask,
)
from dsgc.ops.reference import KERNELS
from dsgc.ops.spec import Activation, OpSpec, define

__all__ = [
    "SPECS",
    "Activation",
    "OpSpec",
    "ceil_div",
    "conv_output_size",
    "expand_index",
    "expand_mask",
    "is_bitmask",
    "mask_to_selection",
    "pool_output_size",
    "register",
    "selection_to_mask",
]

SPECS: tuple[OpSpec, ...] = (
    *activation.SPECS,
    *convolution.SPECS,
    *statistics.SPECS,
    *pooling.SPECS,
    *selection.SPECS,
    *stem.SPECS,
    *linear.SPECS,
    *residual.SPECS,
)


def register(namespace: str, kernels: Mapping[str, Callable[..., Any]]) -> torch.library.Library:
    """Define every operator under `torch.ops.<namespace>` with the given kernels, by operator name.

    Keep the returned library: the operators are gone when it is. Raises KeyError naming operators
    without a kernel.
    """
    return define(namespace, SPECS, kernels)


REFERENCE = register("dsgc", KERNELS)
