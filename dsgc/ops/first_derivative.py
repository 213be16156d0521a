"""Gradients that cannot be differentiated again, and say so whoever asks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dsgc.errors import UnsupportedError

__all__ = ["first_derivative_only", "refuse_forward_mode", "without_forward_mode"]

_INSTEAD = (
    "dsgc: packed operators have first derivatives only, by backward; compile with "
    'backend="reference" for {what}'
)


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`backward(ctx, *grads)` as a formula that nobody can differentiate.

    Unlike torch's `once_differentiable`, whose results depend on nothing, what this returns leads
    to everything it was made of: a second derivative is an error, and never a zero.
    """

    @functools.wraps(backward, assigned=())
    def formula(ctx: Any, *grads: Any) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        sources = [
            one
            for one in (*grads, *ctx.saved_tensors)
            if isinstance(one, Tensor) and one.requires_grad
        ]
        made = [one for one in found if one is not None]
        if not sources or not made:
            return found
        tied = iter(_Refusing.apply(len(made), *made, *sources))  # type: ignore[no-untyped-call]
        return tuple(None if one is None else next(tied) for one in found)

    return formula


class _Refusing(torch.autograd.Function):
    """Passes on its first `count` tensors, as results of all that follow."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise UnsupportedError(_INSTEAD.format(what="second ones"))


def without_forward_mode(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, refusing tensors with a derivative of forward mode, which it would lose."""

    @functools.wraps(kernel, assigned=())
    def checked(*arguments: Any) -> Any:
        _refuse_tangents(arguments)
        return kernel(*arguments)

    return checked


def refuse_forward_mode(inputs: Sequence[Tensor], model: nn.Module) -> None:
    """Raise UnsupportedError for inputs or parameters with a derivative of forward mode: where one
    of them wants a gradient as well, torch would speak of functions that nobody has written.
    """
    if forward_ad._current_level >= 0:
        _refuse_tangents((*inputs, *model.parameters()))


def _refuse_tangents(values: Iterable[object]) -> None:
    if forward_ad._current_level >= 0 and any(map(_has_tangent, values)):
        raise UnsupportedError(_INSTEAD.format(what="those of forward mode"))


def _has_tangent(value: object) -> bool:
    if not isinstance(value, Tensor):
        return False
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]
