"""Whether somebody follows torch's operations one by one, and whether tensors are ordinary ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

__all__ = ["is_observed", "is_ordinary"]

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


def is_observed() -> bool:
    """Whether a compiler, a mode, a transform or a hook for all modules waits for operations and
    modules that only graphs run node by node have.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or any(_GLOBAL_HOOKS)
    )


def _keys_of(tensor: Tensor) -> int:
    keys: int = torch._C._dispatch_keys(tensor).raw_repr()
    return keys


def _ordinary_keys() -> set[int]:
    with torch.inference_mode():
        inference = torch.empty(0, device="cpu")
    return {_keys_of(inference), _keys_of(torch.empty(0, device="cpu"))}


_KEYS = _ordinary_keys()


def is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is torch's own, on the CPU, and its numbers lie in memory as they are: not
    sparse, not a batch of a transform, not to be negated when they are read.
    """
    return type(tensor) in (Tensor, nn.Parameter) and _keys_of(tensor) in _KEYS
