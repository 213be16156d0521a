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
        self._in_use = self._most_in_use = 0

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
                self._in_use -= session.arena_bytes
                self._idle.append(session)
                self._drop_oldest()

    def _take(self, batch: int) -> Session:
        session = self._find(batch) or Session(*self._made_of, batch)
        with self._lock:
            self._in_use += session.arena_bytes
            self._most_in_use = max(self._most_in_use, self._in_use)
            self._drop_oldest()
        return session

    def _find(self, batch: int) -> Session | None:
        with self._lock:
            for i, session in enumerate(self._idle):
                if session.batch == batch:
                    return self._idle.pop(i)
        return None

    def _drop_oldest(self) -> None:
        """Sessions in use and waiting never hold more than twice the most that was in use."""
        held = self._in_use + sum(session.arena_bytes for session in self._idle)
        while self._idle and held > 2 * self._most_in_use:
            held -= self._idle.pop(0).arena_bytes
