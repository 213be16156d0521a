"""The native code of an artifact: its kernels by name."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm_ffi

from dsgc_runtime.errors import DamagedArtifactError
from dsgc_runtime.manifest import Call, Manifest

__all__ = ["Native"]


class Native:
    """Loads a kernel library; from here on its code may run.

    `wrap` makes what kernels take of an array, without a copy.

    Args:
        library: a shared object; it may be removed afterwards.
        manifest: whose program says which kernels there must be.

    Raises:
        DamagedArtifactError: a kernel is missing.
        OSError: the library cannot be loaded, for example because libgomp is missing.
    """

    def __init__(self, library: Path, manifest: Manifest) -> None:
        # Kernels find threads and workspace through pointers that are filled when they are loaded.
        threads = ctypes.CDLL(str(library))
        threads.dsgc_register_runtime()
        self._set_threads = threads.dsgc_set_thread_count
        self._threads = threads.dsgc_thread_count
        self._module = tvm_ffi.load_module(str(library))
        self.wrap: Callable[[object], object] = tvm_ffi.from_dlpack
        self.kernels: dict[str, Callable[..., None]] = {}
        names = {step.kernel for step in manifest.program if isinstance(step, Call)}
        for name in sorted(names):
            try:
                self.kernels[name] = self._module[name]
            except (AttributeError, KeyError, RuntimeError) as error:
                raise DamagedArtifactError(f"there is no kernel {name!r} in it") from error

    @contextmanager
    def on_threads(self, count: int | None) -> Iterator[None]:
        """Within, this thread's kernels run on `count` threads; None is what OpenMP is set to."""
        if count is None:
            yield
            return
        before: int = self._threads()
        self._set_threads(ctypes.c_int(count))
        try:
            yield
        finally:
            self._set_threads(ctypes.c_int(before))
