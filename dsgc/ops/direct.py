"""Operators as plain functions, without torch's dispatcher.

For an operator of fifteen arguments the dispatcher takes as long as the kernels of a small layer:
every argument goes through it twice, and once more where there is a gradient. Functions give the
same results and gradients for ordinary tensors, and only for those: nobody who follows torch's
operations (modes, transforms, compilers, profilers) gets to see them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsgc.observed import is_observed, is_ordinary
from dsgc.ops.first_derivative import first_derivative_only
from dsgc.ops.spec import OpSpec

__all__ = ["CallsOperators", "Functions", "direct_operators", "suited_to"]


class Functions(SimpleNamespace):
    """Operators as functions, attributes by their names.

    Attributes:
        operators: `torch.ops.<namespace>`, which has the same.
    """

    operators: Any


def suited_to(ops: Any, grads: Iterable[Tensor | None]) -> Any:
    """`ops`, but operators in the place of functions where somebody follows backward: a gradient is
    no ordinary tensor, such as those without memory, or a mode or a transform is on.
    """
    if not isinstance(ops, Functions):
        return ops
    ordinary = all(grad is None or is_ordinary(grad) for grad in grads)
    return ops if ordinary and not is_observed() else ops.operators


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
) -> Functions:
    """Every operator as a function, an attribute of what is returned by its name.

    Args:
        namespace: of the same operators, `torch.ops.<namespace>`.
        specs: the operators.
        kernels: what they do, by name.
    """
    functions = Functions(operators=getattr(torch.ops, namespace))
    for spec in specs:
        make = _plain if spec.backward is None else _differentiable
        setattr(functions, spec.name, make(spec, kernels[spec.name], functions))
    return functions


def _plain(spec: OpSpec, kernel: Callable[..., Any], functions: Functions) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return kernel(*arguments)

    call.__name__ = spec.name
    return call


def _differentiable(
    spec: OpSpec, kernel: Callable[..., Any], functions: Functions
) -> Callable[..., Any]:
    if spec.backward is None or spec.setup_context is None:
        raise ValueError(f"operator {spec.name} has no gradient")
    backward, save = spec.backward, spec.setup_context

    def forward(ctx: Any, *arguments: Any) -> Any:
        result = kernel(*arguments)
        save(ctx, arguments, result)
        return result

    @first_derivative_only
    def formula(ctx: Any, *grads: Any) -> Any:
        return backward(suited_to(functions, grads), ctx, *grads)

    # Made so that the node of autograd has the operator's name.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(formula)}
    function: Any = type(spec.name, (torch.autograd.Function,), methods)

    def call(*arguments: Any) -> Any:
        return function.apply(*arguments) if torch.is_grad_enabled() else kernel(*arguments)

    call.__name__ = spec.name
    return call
