"""Generated kernels: the only part of dsgc that imports TVM, and only when a kernel is not in the
cache.

:func:`cpu_kernels` defines the operators of ``torch.ops.dsgc_cpu``; :func:`cpu_functions` are the
same without torch's dispatcher.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from dsgc.errors import KernelError

if TYPE_CHECKING:
    from dsgc.codegen.cpu import Libraries

__all__ = ["cpu_functions", "cpu_kernels", "cpu_libraries", "release_memory"]


@functools.cache
def cpu_libraries() -> Libraries:
    """The compiled kernels of this process: built, or taken from the cache, when first called.

    Raises:
        KernelError: if the packages, the compiler or the cache that kernels need cannot be had.
    """
    try:
        from dsgc.codegen import families
        from dsgc.codegen.cache import KernelCache
        from dsgc.codegen.cpu import Libraries
    except ImportError as error:
        raise KernelError(
            f"generated kernels need apache-tvm and apache-tvm-ffi ({error}); install them with "
            "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1"
        ) from error
    libraries = Libraries(KernelCache())
    # Every model needs this one: without a compiler or a place to write, it is known here and now.
    libraries(families.lists(), "list_slots")
    return libraries


@functools.cache
def cpu_kernels() -> torch.library.Library:
    """Defines ``torch.ops.dsgc_cpu`` once.

    Raises:
        KernelError: see :func:`cpu_libraries`.
    """
    libraries = cpu_libraries()
    from dsgc.codegen.cpu import kernels
    from dsgc.ops import register

    return register("dsgc_cpu", kernels(libraries))


@functools.cache
def cpu_functions() -> Any:
    """The operators of ``torch.ops.dsgc_cpu`` as functions, see :mod:`dsgc.ops.direct`.

    Raises:
        KernelError: see :func:`cpu_libraries`.
    """
    cpu_kernels()
    from dsgc.codegen.cpu import kernels
    from dsgc.ops import SPECS
    from dsgc.ops.direct import direct_operators

    return direct_operators("dsgc_cpu", SPECS, kernels(cpu_libraries()))


def release_memory() -> int:
    """Gives the memory that waits for its next use back to the system: how many bytes."""
    if not cpu_kernels.cache_info().currsize:
        return 0
    from dsgc.codegen.cache import KernelCache
    from dsgc_runtime import MemoryPool

    return MemoryPool(KernelCache().directory).release()
