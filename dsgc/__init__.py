"""dsgc: a graph compiler for dynamic sparse training.

`dsgc.compile(model, sparsity=0.8)` gives back a module with the same parameters that computes only
the neurons that matter for each input. The import is lean: torch comes with the first use of
`compile`, and tvm with the first kernel that is not in the cache.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dsgc.config import Rule, SparsityConfig
from dsgc.errors import (
    ConfigError,
    DsgcError,
    ExportError,
    InputError,
    KernelError,
    MissingPackageError,
    NothingToSparsifyError,
    ShapesUnknownError,
    TraceError,
    UnknownGraphError,
    UnknownLayerError,
    UnsupportedError,
    VerificationError,
)
from dsgc.log import say_what_is_asked

if TYPE_CHECKING:
    from dsgc.api import compile, release_memory
    from dsgc.exporter import export, export_onnx
    from dsgc.grouping import Grouping, group_neurons
    from dsgc.inspect.compare import compare
    from dsgc.inspect.explain import Explanation, explain
    from dsgc.inspect.firing import FiringRecorder
    from dsgc.module import SparseModule

__all__ = [
    "ConfigError",
    "DsgcError",
    "Explanation",
    "ExportError",
    "FiringRecorder",
    "Grouping",
    "InputError",
    "KernelError",
    "MissingPackageError",
    "NothingToSparsifyError",
    "Rule",
    "ShapesUnknownError",
    "SparseModule",
    "SparsityConfig",
    "TraceError",
    "UnknownGraphError",
    "UnknownLayerError",
    "UnsupportedError",
    "VerificationError",
    "compare",
    "compile",
    "explain",
    "export",
    "export_onnx",
    "group_neurons",
    "release_memory",
]

say_what_is_asked()

# `dsgc --help` should not wait for torch: what needs it is imported when first used.
_WHEN_USED = {
    "Explanation": "dsgc.inspect.explain",
    "FiringRecorder": "dsgc.inspect.firing",
    "Grouping": "dsgc.grouping",
    "SparseModule": "dsgc.module",
    "compare": "dsgc.inspect.compare",
    "compile": "dsgc.api",
    "explain": "dsgc.inspect.explain",
    "export": "dsgc.exporter",
    "export_onnx": "dsgc.exporter",
    "group_neurons": "dsgc.grouping",
    "release_memory": "dsgc.api",
}


def __getattr__(name: str) -> object:
    if name not in _WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_WHEN_USED[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHEN_USED})
