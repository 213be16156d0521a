"""dsgc: a graph compiler for dynamic sparse training.

`dsgc.compile(model, sparsity=0.8)` gives back a module with the same parameters that computes only
the neurons that matter for each input. The import is lean: torch, and neither tvm nor networkx.
"""

from __future__ import annotations

from dsgc.api import compile
from dsgc.config import Rule, SparsityConfig
from dsgc.errors import (
    ConfigError,
    DsgcError,
    InputError,
    KernelError,
    NothingToSparsifyError,
    ShapesUnknownError,
    TraceError,
    UnknownLayerError,
    UnsupportedError,
    VerificationError,
)
from dsgc.module import SparseModule

__all__ = [
    "ConfigError",
    "DsgcError",
    "InputError",
    "KernelError",
    "NothingToSparsifyError",
    "Rule",
    "ShapesUnknownError",
    "SparseModule",
    "SparsityConfig",
    "TraceError",
    "UnknownLayerError",
    "UnsupportedError",
    "VerificationError",
    "compile",
]
