"""PackedSelection: a selector as the lowered graph calls it."""

from __future__ import annotations

from torch import Tensor

from dsgc.ops.direct import CallsOperators
from dsgc.select.selector import Selector

__all__ = ["PackedSelection"]


class PackedSelection(CallsOperators):
    """Calls a selector for the packed form of its selection."""

    def __init__(self, selector: Selector, namespace: str = "dsgc") -> None:
        super().__init__(namespace)
        self.selector = selector

    def forward(
        self,
        x: Tensor,
        index: Tensor | None,
        rowptr: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        act: str,
        size: tuple[int, int, int],
    ) -> tuple[Tensor, Tensor]:
        """(index, rowptr) of the selection for the input given as a deferred activation."""
        return self.selector.packed(x, index, rowptr, scale, shift, act, size, self.ops)
