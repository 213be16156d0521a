"""A tensor's memory as an array that torch does not know of."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["memory_of"]


def memory_of(tensor: Tensor, count: int) -> NDArray[Any]:
    """The first ``count`` numbers of a tensor's memory on the CPU, which must outlive the array.

    Torch lets nobody resize what it has handed to numpy itself.
    """
    memory = (ctypes.c_byte * (count * tensor.element_size())).from_address(tensor.data_ptr())
    return np.frombuffer(memoryview(memory), str(tensor.dtype).removeprefix("torch."))
