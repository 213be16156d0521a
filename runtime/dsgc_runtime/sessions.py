"""Sessions that are kept between calls, one batch size each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from dsgc_runtime.manifest import Manifest
from dsgc_runtime.session import Kernels, Session

__all__ = ["Sessions"]

_KEPT = 8


class Sessions:
    """Memory for calls of a program: any number at once, each with a session of its own.

    Args:
        manifest: the program.
        constants: by name.
        kernels: what it calls.
    """

    def __init__(
        self, manifest: Manifest, constants: Mapping[str, NDArray[Any]], kernels: Kernels
    ) -> None:
        self._made_of = manifest, constants, kernels
        self._lock = threading.Lock()
        self._idle: list[Session] = []

    @contextmanager
    def of(self, batch: int) -> Iterator[Session]:
        """A session for a batch of this size, which is nobody else's within.

        Raises:
            DamagedArtifactError: a tensor does not fit into its memory.
            MemoryError: there is not enough memory.
        """
        session = self._take(batch)
        try:
            yield session
        finally:
            with self._lock:
                self._idle.append(session)
                del self._idle[:-_KEPT]

    def _take(self, batch: int) -> Session:
        with self._lock:
            for i, session in enumerate(self._idle):
                if session.batch == batch:
                    return self._idle.pop(i)
        return Session(*self._made_of, batch)
