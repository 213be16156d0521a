"""A program with memory for one batch size: what one call at a time runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsgc_runtime.arena import ALIGNMENT, plan
from dsgc_runtime.check import buffer_sizes, volume
from dsgc_runtime.errors import DamagedArtifactError
from dsgc_runtime.manifest import DTYPES, Call, Manifest, Read, View
from dsgc_runtime.sizes import Size, evaluate, names_in

__all__ = ["Kernels", "Session"]

Make = Callable[[tuple[int, ...], str], NDArray[Any]]
Around = Callable[[int], AbstractContextManager[None]]


class Kernels(Protocol):
    """Compiled functions by name, and what makes their arguments of arrays, without a copy."""

    @property
    def kernels(self) -> Mapping[str, Callable[..., None]]:
        """By name."""

    @property
    def wrap(self) -> Callable[[object], object]:
        """Makes what they take."""


class Session:
    """The buffers of a program for batches of one size, and its calls made ready.

    Args:
        manifest: the program.
        constants: by name.
        native: the kernels.
        batch: samples of a call, at least one.

    Raises:
        DamagedArtifactError: a tensor does not fit into its memory.
        MemoryError: there is not enough memory.

    Attributes:
        sizes: bytes of every buffer.
    """

    def __init__(
        self,
        manifest: Manifest,
        constants: Mapping[str, NDArray[Any]],
        native: Kernels,
        batch: int,
    ) -> None:
        self.manifest, self.batch = manifest, batch
        self._constants = constants
        self._known = {"batch": batch}
        self.sizes = buffer_sizes(manifest, constants, batch)
        self._outside = {port.view.storage for port in (*manifest.inputs, *manifest.outputs)}
        self._wrap = native.wrap
        self._arena = self._make_arena()
        self._steps = [self._step(step, native) for step in manifest.program]

    # Making ready

    def _make_arena(self) -> NDArray[np.uint8]:
        needed = [
            (0 if number in self._outside else size, buffer.first, buffer.last)
            for number, (size, buffer) in enumerate(
                zip(self.sizes, self.manifest.buffers, strict=True)
            )
        ]
        self._offsets, total = plan(needed)
        raw = np.empty(total + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + total]

    @property
    def arena_bytes(self) -> int:
        """Of all buffers but inputs and outputs."""
        return int(self._arena.nbytes)

    def _step(self, step: Call | Read, native: Kernels) -> tuple[Any, list[Any], list[Any]]:
        """A kernel, its arguments, and those of them that are only known in a call."""
        if isinstance(step, Read):
            return None, [step], []
        arguments: list[Any] = []
        late: list[tuple[int, View | Size]] = []
        for i, argument in enumerate(step.arguments):
            if isinstance(argument, float):
                arguments.append(argument)
            elif not self._is_known(argument):
                arguments.append(None)
                late.append((i, argument))
            elif isinstance(argument, View):
                arguments.append(self._tensor(argument, self._known))
            else:
                arguments.append(evaluate(argument, self._known))
        return native.kernels[step.kernel], arguments, late

    def _is_known(self, argument: View | Size) -> bool:
        """Whether an argument is the same in every call."""
        if not isinstance(argument, View):
            return names_in(argument) <= {"batch"}
        names: set[str] = set().union(*(names_in(extent) for extent in argument.shape))
        return argument.storage not in self._outside and names <= {"batch"}

    def _tensor(self, view: View, known: Mapping[str, int]) -> Any:
        return self._wrap(self._view(view, known))

    def _view(self, view: View, known: Mapping[str, int]) -> NDArray[Any]:
        shape = tuple(evaluate(extent, known) for extent in view.shape)
        if isinstance(view.storage, str):
            flat = self._constants[view.storage].reshape(-1).view(np.uint8)
            start = 0
        elif view.storage in self._outside:
            flat, start = self._held[view.storage].reshape(-1).view(np.uint8), 0
        else:
            flat, start = self._arena, self._offsets[view.storage]
        size = volume(view.shape, known) * DTYPES[view.dtype]
        return flat[start : start + size].view(view.dtype).reshape(shape)

    # Running

    def run(
        self,
        inputs: Sequence[NDArray[Any]],
        around: Around | None = None,
        make: Make = np.empty,
    ) -> list[NDArray[Any]]:
        """The outputs for inputs that were checked, in memory that `make` gives for a shape and a
        dtype; every kernel runs within `around` of the number of its instruction.
        """
        self._held: dict[int | str, NDArray[Any]] = {}
        for port, array in zip(self.manifest.inputs, inputs, strict=True):
            self._held[port.view.storage] = array
        outputs = []
        for port in self.manifest.outputs:
            shape = tuple(evaluate(extent, self._known) for extent in port.view.shape)
            made = make(shape, port.view.dtype)
            self._held[port.view.storage] = made
            outputs.append(made)
        known = dict(self._known)
        for number, (kernel, arguments, late) in enumerate(self._steps):
            if kernel is None:
                self._read(arguments[0], known)
                continue
            if late:
                arguments = list(arguments)
                for i, argument in late:
                    arguments[i] = (
                        self._tensor(argument, known)
                        if isinstance(argument, View)
                        else evaluate(argument, known)
                    )
            if around is None:
                kernel(*arguments)
            else:
                with around(number):
                    kernel(*arguments)
        self._held = {}
        return outputs

    def _read(self, step: Read, known: dict[str, int]) -> None:
        vector = self._view(step.view, known)
        count = int(vector[-1]) if len(vector) else -1
        if not 0 <= count <= evaluate(step.most, self._known):
            raise DamagedArtifactError(f"the program counted {count} {step.name}")
        known[step.name] = count
