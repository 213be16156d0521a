"""Compiled kernel libraries, loaded when first needed."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, MutableMapping
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack
from torch.utils.weak import WeakTensorKeyDictionary

import dsgc_runtime
from dsgc.codegen.build import build_library, kernels_key, known_host_target
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.families import Family
from dsgc.codegen.target import CpuTarget
from dsgc.codegen.tuner import Tuner
from dsgc.errors import KernelError

__all__ = ["Libraries", "is_dense", "standalone"]

_log = logging.getLogger(__name__)
Kernel = Callable[..., None]
_POOLED_BYTES = 1 << 20
_SCRATCH_VIEWS = 256  # shapes of small scratch memory that are kept
_RECALLED = 3
Value = TypeVar("Value")
_Remembered = MutableMapping[Tensor, dict[str, tuple[int, Any]]]


class Libraries:
    """The kernels of this process.

    Args:
        cache: where compiled libraries are kept between processes.
        target: the CPU to compile for; None is this machine's.

    Attributes:
        tuner: chooses between schedules of the same work.
    """

    def __init__(self, cache: KernelCache, target: CpuTarget | None = None) -> None:
        self._cache = cache
        self._target = target
        self._modules: dict[str, Any] = {}
        self._kernels: dict[tuple[str, str], Kernel] = {}
        self._lock = threading.Lock()
        self.tuner = Tuner(lambda: cache.directory / (kernels_key("schedules", target) + ".json"))
        self._pool: dsgc_runtime.MemoryPool | None = None
        self._local = threading.local()
        self._remembered: _Remembered = WeakTensorKeyDictionary()

    def __call__(self, family: Family, name: str) -> Kernel:
        """The kernel ``name`` of ``family``, built and loaded if need be.

        Raises:
            KernelError: if it cannot be had.
        """
        kernel = self._kernels.get((family.name, name))
        if kernel is None:
            with self._lock:
                begun = time.perf_counter()
                kernel = self._kernels[family.name, name] = self._module(family)[name]
                spent = 1e3 * (time.perf_counter() - begun)
                _log.info("kernel %s of %s: %.1f ms to have it", name, family.name, spent)
        return kernel

    @property
    def target(self) -> CpuTarget:
        """The CPU that kernels are compiled for."""
        return self._target or known_host_target(self._cache)

    def _module(self, family: Family) -> Any:
        if family.name not in self._modules:
            path = build_library(family, self._cache, self._target)
            try:
                loaded = dsgc_runtime.load_kernels(path, self._cache.directory)
            except (OSError, dsgc_runtime.RuntimeBuildError) as error:
                raise KernelError(f"the kernels {path} could not be loaded: {error}") from error
            self._modules[family.name] = loaded
        return self._modules[family.name]

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised float32 memory for a result; from the pool if it is large."""
        count = prod(shape)
        if 4 * count < _POOLED_BYTES:
            return torch.empty(shape, dtype=torch.float32)
        if self._pool is None:
            self._pool = dsgc_runtime.MemoryPool(self._cache.directory)
        flat: Tensor = from_dlpack(self._pool.floats(count))
        return standalone(flat.view(shape))

    def empty_like(self, tensor: Tensor) -> Tensor:
        """The same for the shape and strides of a float32 tensor without gaps."""
        if 4 * tensor.numel() < _POOLED_BYTES or not is_dense(tensor):
            return torch.empty_like(tensor)
        flat = self.empty(tensor.numel())
        return standalone(flat.as_strided(tensor.shape, tensor.stride()))

    def remember(self, tensor: Tensor, use: str, make: Callable[[Tensor], Value]) -> Value:
        """``make(tensor)``, made once for as long as the tensor lives, and again after torch has
        written to it.

        Writes that torch does not count, those to inference tensors among them, go unnoticed.
        """
        version = 0 if tensor.is_inference() else tensor._version
        kept = self._remembered.setdefault(tensor, {})
        found = kept.get(use)
        if found is None or found[0] != version:
            found = kept[use] = (version, make(tensor))
        value: Value = found[1]
        return value

    def recall(self, tensor: Tensor, make: Callable[[Tensor], Value]) -> Value:
        """``make(tensor)``, from memory if it was among the last few that this thread asked for.

        Like :meth:`remember`, for values too large to keep; one kind of value only.
        """
        recent: list[tuple[Any, Any]] = self._local.__dict__.setdefault("recent", [])
        for known, kept in recent:
            if known() is tensor:
                value: Value = kept
                return value
        value = make(tensor)
        recent.insert(0, (weakref.ref(tensor), value))
        del recent[_RECALLED:]
        return value

    def scratch(self, use: str, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised float32 memory for what never leaves an operator.

        Small pieces live on, one a use and thread: the next request for the same use gets the same
        memory. Large ones come from the pool and go back when the caller drops them.
        """
        views: dict[object, Tensor] = self._local.__dict__.setdefault("views", {})
        known = views.get((use, shape))
        if known is not None:
            return known
        count = prod(shape)
        if 4 * count >= _POOLED_BYTES:
            return self.empty(*shape)
        buffers: dict[str, Tensor] = self._local.__dict__.setdefault("buffers", {})
        buffer = buffers.get(use)
        # What lives on must not be an inference tensor: training may be next to write to it.
        with torch.inference_mode(False):
            if buffer is None or buffer.numel() < count:
                buffer = buffers[use] = torch.empty(count, dtype=torch.float32)
                views.clear()
            elif len(views) > _SCRATCH_VIEWS:
                views.clear()
            made = views[use, shape] = buffer[:count].view(shape)
        return made


def standalone(view: Tensor) -> Tensor:
    """The same memory as a tensor that is no view of another one; nobody else may write to it.

    Autograd forbids in-place operations on views that an operator returns. Its memory lives as long
    as the result, and so does what comes from the pool.
    """
    return view.data


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
