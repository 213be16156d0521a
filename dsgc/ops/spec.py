"""Operators as data: what an operator is called, takes, returns, saves and does backward."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsgc.ops.first_derivative import first_derivative_only, without_forward_mode

__all__ = [
    "ACTS",
    "ACT_SCHEMA",
    "GEOMETRY_SCHEMA",
    "Activation",
    "Backward",
    "OpSpec",
    "check_activation",
    "define",
    "has_affine",
    "not_differentiable",
]

ACT_SCHEMA = (
    "Tensor x, Tensor? index, Tensor? rowptr, Tensor? scale, Tensor? shift, str act, int[3] size"
)
GEOMETRY_SCHEMA = "int[2] stride, int[2] padding, int[2] dilation"

ACTS = {
    "identity": False,
    "relu": False,
    "affine": True,
    "affine_relu": True,
    "relu_affine": True,
}


class Activation(NamedTuple):
    """A value whose activation function is applied by whoever reads it.

    x is `values` [nnz, block] with a selection (index, rowptr), or dense [N, C, H, W] with neither.
    `size` is (C, H, W). `act` names what readers apply: "identity": x; "relu": relu(x); "affine": x
    * scale + shift; "affine_relu": relu(x * scale + shift); "relu_affine": relu(x) * scale + shift.
    scale and shift are [C], and None unless act has "affine" in its name.
    """

    x: Tensor
    index: Tensor | None  # type: ignore[assignment]  # tuple.index is never asked for
    rowptr: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    act: str
    size: Sequence[int]


# backward(ops, ctx, *grads) -> one gradient per argument; `ops` is the operator's own namespace,
# torch.ops.<namespace>.
Backward = Callable[..., tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class OpSpec:
    """One operator: its name and schema, its fake kernel, and how autograd treats it.

    `setup_context` and `backward` are None for the operators that are backward formulas themselves.
    """

    name: str
    schema: str
    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None = None
    backward: Backward | None = None


def has_affine(act: str) -> bool:
    """Whether an activation has a scale and a shift. Raises ValueError for an unknown one."""
    if act not in ACTS:
        raise ValueError(f"unknown activation {act!r}: one of {', '.join(ACTS)}")
    return ACTS[act]


def check_activation(activation: Activation) -> None:
    """Raise ValueError if the parts of an activation do not fit together."""
    x, index, rowptr, scale, shift, act, size = activation
    if has_affine(act) != (scale is not None) or (scale is None) != (shift is None):
        raise ValueError(
            f"activation {act!r} with scale {scale is not None}, shift {shift is not None}"
        )
    if scale is not None and (shift is None or scale.shape != (size[0],) != shift.shape):
        raise ValueError(f"scale and shift must have {size[0]} entries")
    if (index is None) != (rowptr is None):
        raise ValueError("index and rowptr come together or not at all")
    if index is None and tuple(x.shape[1:]) != tuple(size):
        raise ValueError(f"a dense input of {tuple(x.shape)} does not have the size {tuple(size)}")
    if index is not None and x.dim() != 2:
        raise ValueError(f"packed values have two dimensions, not {tuple(x.shape)}")


def not_differentiable(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """`setup_context` of an operator through which no gradient ever flows (selection)."""
    ctx.count = len(inputs)
    ctx.mark_non_differentiable(*([output] if isinstance(output, Tensor) else output))


def no_gradient(ops: Any, ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    """`backward` that goes with `not_differentiable`."""
    return (None,) * int(ctx.count)


def define(
    namespace: str, specs: Sequence[OpSpec], kernels: Mapping[str, Callable[..., Any]]
) -> torch.library.Library:
    """Define `specs` under `namespace` with one kernel each; the operators live as long as the
    returned library.

    Raises KeyError naming the operators without a kernel.
    """
    missing = [spec.name for spec in specs if spec.name not in kernels]
    if missing:
        raise KeyError(f"no kernel for {', '.join(missing)} in namespace {namespace!r}")
    library = torch.library.Library(namespace, "DEF")  # type: ignore[no-untyped-call]
    ops = getattr(torch.ops, namespace)
    for spec in specs:
        name = f"{namespace}::{spec.name}"
        library.define(  # type: ignore[no-untyped-call]
            spec.name + spec.schema, tags=(torch.Tag.pt2_compliant_tag,)
        )
        kernel = kernels[spec.name]
        if spec.backward is not None:
            kernel = without_forward_mode(kernel)
        library.impl(  # type: ignore[no-untyped-call]
            spec.name, kernel, "CompositeExplicitAutograd"
        )
        torch.library.register_fake(name, spec.fake, lib=library)
        if spec.backward is not None:
            formula = first_derivative_only(partial(spec.backward, ops))
            torch.library.register_autograd(
                name, formula, setup_context=spec.setup_context, lib=library
            )
    return library
