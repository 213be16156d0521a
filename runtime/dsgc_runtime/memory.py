"""Large buffers that are kept between uses."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from dsgc_runtime.loader import load_shim

__all__ = ["MemoryPool"]

_NAME = b"dltensor"  # what DLPack calls a capsule that nobody has taken yet


class MemoryPool:
    """Float buffers from the process-wide pool of the compiled shim.

    Args:
        shim_directory: where the compiled shim is kept.

    Raises:
        RuntimeBuildError: if the shim is missing and cannot be built.
    """

    def __init__(self, shim_directory: Path) -> None:
        shim = load_shim(shim_directory)
        self._take = shim.dsgc_take_floats
        self._take.restype = ctypes.c_void_p
        self._take.argtypes = [ctypes.c_int64]
        self._release = shim.dsgc_release_memory
        self._release.restype = ctypes.c_int64
        self._capsule = ctypes.pythonapi.PyCapsule_New
        self._capsule.restype = ctypes.py_object
        self._capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def floats(self, count: int) -> Any:
        """A DLPack capsule of ``count`` uninitialised float32; it goes back when nobody uses it.

        Raises:
            MemoryError: if there is no memory.
        """
        found = self._take(count)
        if not found:
            raise MemoryError(f"no memory for {4 * count} bytes")
        return self._capsule(found, _NAME, None)

    def release(self) -> int:
        """Return what waits for its next use to the system; how many bytes that were."""
        return int(self._release())
