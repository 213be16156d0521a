"""Parameters and buffers in recorded code: values of the graph, sizes known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from dsgc.tracing.augmented import Augmented

__all__ = ["StateProxy"]


class StateProxy(Augmented):
    """Stands for a parameter or buffer while code is recorded.

    What it holds is read whenever the graph runs. Its sizes and type are as they are, so that code
    may decide and count by them.
    """

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        self.tensor = tensor

    @property
    def shape(self) -> torch.Size:
        """Sizes of the tensor."""
        return self.tensor.shape

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""
        return self.tensor.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Type of its entries."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.tensor.device

    def size(self, dim: int | None = None) -> Any:
        """Its sizes, or one of them."""
        return self.tensor.size() if dim is None else self.tensor.size(dim)

    def dim(self) -> int:
        """Number of its dimensions."""
        return self.tensor.dim()

    def numel(self) -> int:
        """Number of its entries."""
        return self.tensor.numel()

    nelement = numel

    def is_floating_point(self) -> bool:
        """Whether its entries are."""
        return self.tensor.is_floating_point()

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[Any]:
        proxy: Any = self
        return (proxy[i] for i in range(len(self)))
