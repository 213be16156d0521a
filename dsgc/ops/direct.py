"""Operators as plain functions, without torch's dispatcher.

For an operator of fifteen arguments the dispatcher takes as long as the kernels of a small layer:
every argument goes through it twice, and once more where there is a gradient. Functions give the
same results and gradients for ordinary tensors, and only for those: nobody who follows torch's
operations (modes, transforms, compilers, profilers) gets to see them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsgc.ops.first_derivative import first_derivative_only
from dsgc.ops.spec import OpSpec

__all__ = ["CallsOperators", "direct_operators"]


class CallsOperators(nn.Module):
    """A step that calls operators itself.

    Args:
        namespace: of the operators, `torch.ops.<namespace>`.

    Attributes:
        functions: to be called in their place, by name; None for the operators.
    """

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.functions: Any = None

    @property
    def ops(self) -> Any:
        """What has the operators as attributes."""
        return getattr(torch.ops, self.namespace) if self.functions is None else self.functions

    def with_functions(self, functions: Any) -> Self:
        """The same step, sharing all state, with functions in the place of operators."""
        same = copy.copy(self)
        same.functions = functions
        return same


def direct_operators(
    namespace: str, specs: Sequence[OpSpec], kernels: Mapping[str, Callable[..., Any]]
) -> Any:
    """Every operator as a function, an attribute of what is returned by its name.

    Args:
        namespace: of the same operators. Backward calls those where a gradient is no ordinary
            tensor.
        specs: the operators.
        kernels: what they do, by name.
    """
    functions = SimpleNamespace()
    for spec in specs:
        make = _plain if spec.backward is None else _differentiable
        setattr(functions, spec.name, make(spec, kernels[spec.name], functions, namespace))
    return functions


def _plain(
    spec: OpSpec, kernel: Callable[..., Any], functions: Any, namespace: str
) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return kernel(*arguments)

    call.__name__ = spec.name
    return call


def _differentiable(
    spec: OpSpec, kernel: Callable[..., Any], functions: Any, namespace: str
) -> Callable[..., Any]:
    if spec.backward is None or spec.setup_context is None:
        raise ValueError(f"operator {spec.name} has no gradient")
    backward, save = spec.backward, spec.setup_context
    formula = first_derivative_only(partial(backward, functions))
    dispatched = first_derivative_only(partial(backward, getattr(torch.ops, namespace)))

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            result = kernel(*arguments)
            save(ctx, arguments, result)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            ordinary = all(type(grad) is Tensor for grad in grads)
            return (formula if ordinary else dispatched)(ctx, *grads)

    Direct.__name__ = Direct.__qualname__ = spec.name

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            return Direct.apply(*arguments)  # type: ignore[no-untyped-call]
        return kernel(*arguments)

    call.__name__ = spec.name
    return call
