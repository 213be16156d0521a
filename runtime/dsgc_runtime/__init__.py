"""Runs models that dsgc exported, and what their kernels need: threads, workspace, large buffers.

This package knows neither torch nor TVM's compiler: it stands on numpy, safetensors and
``apache-tvm-ffi`` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dsgc_runtime.errors import (
    ArtifactError,
    DamagedArtifactError,
    InputError,
    NewerFormatError,
    RuntimeBuildError,
    WrongMachineError,
)

if TYPE_CHECKING:
    from dsgc_runtime.loader import (
        compiler_command,
        load_kernels,
        shim_build_arguments,
        shim_path,
    )
    from dsgc_runtime.memory import MemoryPool
    from dsgc_runtime.model import Model, load

__all__ = [
    "ArtifactError",
    "DamagedArtifactError",
    "InputError",
    "MemoryPool",
    "Model",
    "NewerFormatError",
    "RuntimeBuildError",
    "WrongMachineError",
    "compiler_command",
    "load",
    "load_kernels",
    "shim_build_arguments",
    "shim_path",
]

# What is imported when it is first used: reading an artifact needs no kernel loader, and compiled
# modules need no numpy from here.
_WHEN_USED = {
    "MemoryPool": "dsgc_runtime.memory",
    "Model": "dsgc_runtime.model",
    "compiler_command": "dsgc_runtime.loader",
    "load": "dsgc_runtime.model",
    "load_kernels": "dsgc_runtime.loader",
    "shim_build_arguments": "dsgc_runtime.loader",
    "shim_path": "dsgc_runtime.loader",
}


def __getattr__(name: str) -> object:
    if name not in _WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_WHEN_USED[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHEN_USED})
