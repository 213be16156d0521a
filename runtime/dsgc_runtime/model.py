"""A loaded artifact: a function of arrays."""

from __future__ import annotations

import operator
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsgc_runtime.archive import Archive, open_archive
from dsgc_runtime.check import check_archive
from dsgc_runtime.errors import InputError
from dsgc_runtime.manifest import Layer, Port
from dsgc_runtime.native import Native
from dsgc_runtime.profile import LayerProfile, by_layer
from dsgc_runtime.session import Session
from dsgc_runtime.sessions import Sessions

__all__ = ["LayerProfile", "Model", "PortInfo", "load"]


@dataclass(frozen=True)
class PortInfo:
    """An input or output: its name, dtype and shape; None in the shape is a batch of any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def load(path: str | Path, threads: int | None = None) -> Model:
    """Load an artifact.

    It holds native code, which runs in this process: load only what you trust. Everything in it is
    checked before that code is.

    Args:
        path: what `dsgc.export` wrote.
        threads: how many to run on, 1024 at most; None is all that OpenMP gives.

    Raises:
        ValueError: that many threads are not possible.
        FileNotFoundError: there is no such file.
        ArtifactError: it cannot be used, see `dsgc_runtime.errors`.
        OSError: the C library of OpenMP (libgomp) is missing on this machine.
    """
    return Model(open_archive(path), threads)


_MOST_THREADS = 1024  # what a process can start is not known, and to fail there ends it


def _possible(count: int | None) -> int | None:
    """A number of threads that may be asked for."""
    try:
        number = None if count is None or isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = None
    if count is not None and (number is None or not 1 <= number <= _MOST_THREADS):
        raise ValueError(
            f"threads must be a number from 1 to {_MOST_THREADS}, or None, not {count!r}"
        )
    return number


class Model:
    """A loaded artifact; call it with one array an input.

    Any number of threads may call it at once: each call has memory of its own.
    """

    def __init__(self, archive: Archive, threads: int | None = None) -> None:
        self._threads = _possible(threads)
        self.manifest = archive.manifest
        self.graph = archive.graph
        self._inputs = tuple(self._info(port) for port in archive.manifest.inputs)
        self._outputs = tuple(self._info(port) for port in archive.manifest.outputs)
        check_archive(archive)
        with tempfile.TemporaryDirectory(prefix="dsgc-") as folder:
            library = Path(folder) / "kernels.so"
            library.write_bytes(archive.kernels)
            self._native = Native(library, archive.manifest)
        self._sessions = Sessions(archive.manifest, archive.constants, self._native)

    @property
    def threads(self) -> int | None:
        """How many threads a call runs on; None is all that OpenMP gives."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        self._threads = _possible(count)

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """What the model takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[PortInfo, ...]:
        """What the model gives."""
        return self._outputs

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What the compiler made of every layer of the original model."""
        return self.manifest.layers

    def __call__(self, *inputs: Any) -> NDArray[Any] | tuple[NDArray[Any], ...]:
        """Run the model.

        Args:
            inputs: arrays of numpy, torch or anything with DLPack on the CPU; contiguous float32
                is taken as it is, without a copy.

        Returns:
            An array, or a tuple if the model has several outputs.

        Raises:
            InputError: an input has another shape, dtype or device, or their batches differ.
            DamagedArtifactError: the program makes tensors that lie outside of their memory, or
                beyond all bounds, for a batch of this size.
            MemoryError: there is not enough memory for a batch of this size.
        """
        arrays, batch = self._arrays(inputs)
        made = self._run(arrays, batch)
        return made[0] if len(made) == 1 else tuple(made)

    def profile(self, *inputs: Any) -> list[LayerProfile]:
        """Run the model once and tell what every layer took, in order.

        Raises:
            The same as a call.
        """
        arrays, batch = self._arrays(inputs)
        if batch == 0:
            raise InputError("an empty batch takes no time: profile a call with samples")
        seconds: dict[int, float] = {}

        @contextmanager
        def timed(number: int) -> Iterator[None]:
            begun = time.perf_counter()
            yield
            seconds[number] = time.perf_counter() - begun

        with self._session(batch) as session:
            session.run(arrays)  # whatever happens only once has happened
            begun = time.perf_counter()
            session.run(arrays, timed)
            whole = time.perf_counter() - begun
        return by_layer(self.manifest, session.sizes, seconds, whole)

    def _run(self, arrays: Sequence[NDArray[Any]], batch: int) -> list[NDArray[Any]]:
        if batch == 0:
            return [
                np.empty((0, *port.shape[1:]), port.dtype)  # type: ignore[arg-type]
                for port in self.outputs
            ]
        with self._session(batch) as session:
            return session.run(arrays)

    @contextmanager
    def _session(self, batch: int) -> Iterator[Session]:
        """Memory for one call, on this model's number of threads."""
        with self._sessions.of(batch) as session, self._native.on_threads(self._threads):
            yield session

    def _arrays(self, given: Sequence[Any]) -> tuple[list[NDArray[Any]], int]:
        ports = self.inputs
        if len(given) != len(ports):
            names = ", ".join(port.name for port in ports)
            raise InputError(f"the model takes {len(ports)} inputs ({names}), not {len(given)}")
        arrays = [_array(value, port) for value, port in zip(given, ports, strict=True)]
        batch = arrays[0].shape[0]
        for array, port in zip(arrays, ports, strict=True):
            if array.shape[0] != batch:
                raise InputError(
                    f"input {port.name!r} has a batch of {array.shape[0]}, and "
                    f"{ports[0].name!r} one of {batch}"
                )
        if not self.manifest.dynamic and batch != self.manifest.example:
            raise InputError(
                f"the artifact was exported for batches of {self.manifest.example}, not {batch}: "
                "export it with dynamic_batch=True"
            )
        return arrays, batch

    def _info(self, port: Port) -> PortInfo:
        batch = None if self.manifest.dynamic else self.manifest.example
        shape = tuple(extent if isinstance(extent, int) else batch for extent in port.view.shape)
        return PortInfo(port.name, port.view.dtype, shape)


def _array(value: Any, port: PortInfo) -> NDArray[Any]:
    if hasattr(value, "resolve_neg"):
        value = value.resolve_neg()  # DLPack does not know that torch may still have to negate
    try:
        array = value if isinstance(value, np.ndarray) else np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"input {port.name!r} is a {type(value).__name__} that numpy cannot read ({error}); "
            "give an array or tensor on the CPU that needs no gradient"
        ) from error
    wanted = ", ".join(("batch", *map(str, port.shape[1:])))
    fits = array.ndim == len(port.shape) and array.shape[1:] == port.shape[1:]
    if array.dtype != np.dtype(port.dtype) or not fits:
        raise InputError(
            f"input {port.name!r} must be {port.dtype} [{wanted}], not {array.dtype} "
            f"{list(array.shape)}"
        )
    # Kernels do not write to inputs, but a view of what is read-only cannot be handed to them.
    return np.require(array, requirements=["C", "W", "A"])
