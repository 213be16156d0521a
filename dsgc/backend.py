"""Which kernels a call runs on."""

from __future__ import annotations

import threading
import warnings

import torch
from torch import Tensor, nn

from dsgc.errors import KernelError, UnsupportedError
from dsgc.observed import is_ordinary

__all__ = ["Backend"]

_LOADING = threading.Lock()


class Backend:
    """Chooses between generated kernels and plain PyTorch, and says so where it is not as asked.

    Args:
        model: whose parameters must suit the kernels.
        asked: "auto", "tvm" or "reference".
    """

    def __init__(self, model: nn.Module, asked: str) -> None:
        self.model, self.asked = model, asked
        self._parameters = [(path, m._parameters) for path, m in model.named_modules()]
        self._warned = False
        self._without_kernels = ""

    def namespace_for(self, tensors: list[Tensor]) -> str | None:
        """The kernels for these inputs; None is the semantic graph in plain PyTorch.

        Raises:
            UnsupportedError, KernelError: "tvm" was asked for, and cannot run this.
        """
        if self.asked == "reference":
            return None
        obstacle = self._obstacle(tensors) or self._without_kernels
        if not obstacle:
            try:
                _load_kernels()
                return "dsgc_cpu"
            except KernelError as error:
                if self.asked == "tvm":
                    raise
                obstacle = self._without_kernels = str(error)
                warnings.warn(
                    f"dsgc: running in plain PyTorch, no faster than dense: {error}",
                    UserWarning,
                    stacklevel=5,
                )
        if self.asked == "tvm":
            raise UnsupportedError(
                f'backend="tvm" cannot run this: {obstacle}; use backend="auto" or "reference"'
            )
        return None

    def require_kernels(self) -> None:
        """Raise KernelError if kernels could not be built or loaded here."""
        if self._without_kernels:
            raise KernelError(self._without_kernels)

    def warn_of_autocast(self) -> None:
        """Say once that the kernels take no notice of it."""
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            "dsgc: packed kernels compute in float32; autocast is ignored inside the sparse "
            'module (compile with backend="reference" to honour it)',
            UserWarning,
            stacklevel=5,
        )

    def is_ordinary(self, tensors: list[Tensor]) -> bool:
        """Whether inputs are ordinary tensors, and parameters of no class of somebody's."""
        return all(map(is_ordinary, tensors)) and all(
            parameter is None or type(parameter) in (Tensor, nn.Parameter)
            for _, table in self._parameters
            for parameter in table.values()
        )

    def _obstacle(self, tensors: list[Tensor]) -> str:
        mixed = torch.is_autocast_enabled("cpu")
        allowed = (torch.float32, torch.bfloat16, torch.float16) if mixed else (torch.float32,)
        for i, tensor in enumerate(tensors):
            if tensor.device.type != "cpu":
                return f"input {i} is on {tensor.device}, generated kernels run on the CPU"
            if tensor.is_floating_point() and tensor.dtype not in allowed:
                return f"input {i} is {tensor.dtype}, generated kernels compute in float32"
        for path, table in self._parameters:
            for name, parameter in table.items():
                if parameter is None or (parameter.is_cpu and parameter.dtype is torch.float32):
                    continue
                where = f"{parameter.dtype} on {parameter.device}"
                full = f"{path}.{name}" if path else name
                return f"parameter {full} is {where}, generated kernels work on float32 on the CPU"
        return ""


def _load_kernels() -> None:
    """Register the generated kernels; tvm is imported here at the earliest."""
    with _LOADING:
        try:
            from dsgc.codegen import cpu_kernels
        except ImportError as error:
            raise KernelError(f"generated kernels need apache-tvm: {error}") from error
        cpu_kernels()
