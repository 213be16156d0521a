"""Whether somebody follows torch's operations one by one."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

__all__ = ["is_observed"]

_GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)


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
