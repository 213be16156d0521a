"""Maps that backward makes again instead of keeping them.

The first layers of a network make its largest maps with the least work. Where such a map is read
by sparse layers only, nothing in autograd keeps it: they keep a `Recomputable`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsgc.ops.convolution import gradients
from dsgc.ops.direct import CallsOperators, suited_to
from dsgc.ops.first_derivative import first_derivative_only

__all__ = ["Recomputable", "Recompute", "RecomputedConv2d"]


class Recomputable:
    """How to make the result of a stem_conv2d again.

    Made once for all that hold it, and dropped when the last of them has taken it.

    Args:
        ops: the namespace of the operator.
        arguments: of stem_conv2d.
    """

    def __init__(self, ops: Any, arguments: tuple[Any, ...]) -> None:
        self._ops = ops
        self._arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        self._versions = self._current()
        self._holders = 0
        self._taken = 0
        self._made: Tensor | None = None

    def hold(self) -> "Recomputable":
        """Itself, for one more who will `take` it."""
        self._holders += 1
        return self

    def take(self) -> Tensor:
        """The map, channels last.

        Raises:
            RuntimeError: the input, weight or bias was changed in place since forward.
        """
        if self._current() != self._versions:
            raise RuntimeError(
                "the input or a parameter of a first convolution was modified in place between "
                "forward and backward, where its result has to be made again"
            )
        if self._made is None:
            with torch.no_grad():
                self._made = suited_to(self._ops, ()).stem_conv2d(*self._arguments)
        made = self._made
        self._taken += 1
        if self._taken >= self._holders:
            self._made, self._taken = None, 0
        return made

    def _current(self) -> tuple[int, ...]:
        return tuple(a._version for a in self._arguments if isinstance(a, Tensor))


class Recompute(CallsOperators):
    """Tells the readers of a stem_conv2d how to make its result again.

    Args:
        namespace: of the operator, `torch.ops.<namespace>`.
    """

    def forward(self, *arguments: Any) -> Recomputable | None:
        """For the arguments of the operator; None where there will be no backward."""
        if not torch.is_grad_enabled():
            return None
        return Recomputable(self.ops, arguments)


class RecomputedConv2d(CallsOperators):
    """The operator conv2d, keeping a `Recomputable` in place of its input.

    Args:
        namespace: of the operator, `torch.ops.<namespace>`.
    """

    def forward(self, again: Recomputable | None, *arguments: Any) -> Tensor:
        """Packed values [nnz, block] for the arguments of conv2d."""
        ops = self.ops
        if again is None:
            values: Tensor = ops.conv2d(*arguments)
            return values
        made: Tensor = _Conv2d.apply(again, ops, *arguments)  # type: ignore[no-untyped-call]
        return made


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, again: Recomputable, ops: Any, *arguments: Any) -> Tensor:
        _, index, rowptr, scale, shift, act, size, weight, _, y_index, y_rowptr, *rest = arguments
        ctx.save_for_backward(index, rowptr, scale, shift, weight, y_index, y_rowptr)
        ctx.act, ctx.size, ctx.rest = act, size, rest
        ctx.again, ctx.ops = again.hold(), ops
        made: Tensor = ops.conv2d(*arguments)
        return made

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved: Sequence[Tensor | None] = ctx.saved_tensors
        tensors = (ctx.again.take(), *saved)
        needs = ctx.needs_input_grad[2:]
        ops = suited_to(ctx.ops, [grad])
        return None, None, *gradients(ops, grad, tensors, ctx.act, ctx.size, ctx.rest, needs)
