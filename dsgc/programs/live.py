"""Runs programs in this process: on torch's tensors, by the kernels that torch's operators use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import tvm_ffi
from numpy.typing import NDArray
from torch import Tensor, fx

from dsgc.codegen import cpu_libraries, release_memory
from dsgc.memory import memory_of
from dsgc.programs.emit import emit
from dsgc.programs.errors import unsupported
from dsgc.programs.fold_norms import fold_norms
from dsgc.programs.program import Emitted
from dsgc_runtime.manifest import FORMAT, Call, Manifest
from dsgc_runtime.sessions import Sessions

__all__ = ["LiveProgram"]

_NOWHERE = {"name": "", "machine": "", "features": []}
Around = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Kernels:
    kernels: dict[str, Callable[..., None]]
    wrap: Callable[[object], object] = tvm_ffi.from_dlpack


class LiveProgram:
    """A lowered graph in eval mode, with the weights that it has now, for batches of any size.

    Any number of threads may call it at once.

    Args:
        graph: a lowered graph.
        inputs: an example batch; kernels are chosen for its size.
        layers: names of the model's modules, to which kernels are said to belong.

    Raises:
        ExportError: an operation cannot be part of a program.
        KernelError: a kernel cannot be built.
    """

    def __init__(
        self, graph: fx.GraphModule, inputs: Sequence[Tensor], layers: Sequence[str]
    ) -> None:
        self._result = _result_of(graph)
        libraries = cpu_libraries()
        example = [_plain(x) for x in inputs]
        emitted = emit(fold_norms(graph), example, libraries.target, layers)
        self._manifest = _manifest(emitted, int(inputs[0].shape[0]))
        self._constants = dict(emitted.program.constants)
        constants = {name: _array_of(t) for name, t in self._constants.items()}
        kernels = {n: libraries(family, n) for n, family in emitted.program.families.items()}
        release_memory()  # what running the example took
        self._sessions = Sessions(self._manifest, constants, _Kernels(kernels))

    def __call__(self, inputs: Sequence[Tensor], around: Around | None = None) -> Any:
        """What the graph makes of inputs on the CPU, float32, with a batch of at least one.

        Args:
            inputs: as many as the graph takes, with the same number of samples.
            around: gives what is entered around the kernels of a layer.
        """
        given = [_plain(x) for x in inputs]
        made: list[Tensor] = []

        def make(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
            made.append(torch.empty(shape, dtype=getattr(torch, dtype)))
            return _array_of(made[-1])

        within = None if around is None else lambda number: around(self._layer(number))
        with self._sessions.of(len(given[0])) as session:
            session.run([_array_of(x) for x in given], within, make)
        return _filled(self._result, iter(made))

    def _layer(self, number: int) -> str:
        step = self._manifest.program[number]
        return f"{step.layer}: {step.kernel}" if isinstance(step, Call) else step.layer


def _plain(x: Tensor) -> Tensor:
    """The same numbers in PyTorch's order, as numpy can take them."""
    return x.detach().resolve_neg().contiguous()


def _array_of(tensor: Tensor) -> NDArray[Any]:
    """The memory of a contiguous tensor, which must outlive the array."""
    return memory_of(tensor, tensor.numel()).reshape(tensor.shape)


def _manifest(emitted: Emitted, samples: int) -> Manifest:
    return Manifest.of(
        {
            "format": FORMAT,
            "dsgc": "",
            "target": _NOWHERE,
            "batch": {"dynamic": True, "example": samples},
            **emitted.json(),
            "layers": [],
            "files": {},
        }
    )


def _result_of(graph: fx.GraphModule) -> Any:
    """How the graph arranges its results: nested tuples, lists and dicts of None.

    Raises:
        ExportError: in some other way, or it gives a tensor twice.
    """
    output = next(node for node in reversed(graph.graph.nodes) if node.op == "output")
    found: list[fx.Node] = []

    def arranged(value: object) -> Any:
        if isinstance(value, fx.Node):
            if value.op == "placeholder":
                raise unsupported("an input is given back as it is", "give back what is computed")
            found.append(value)
            return None
        if type(value) is tuple:
            return tuple(arranged(one) for one in value)
        if isinstance(value, list):
            return [arranged(one) for one in value]
        if isinstance(value, dict):
            return {name: arranged(one) for name, one in value.items()}
        raise unsupported(f"a result is a {type(value).__name__}", "give back tensors only")

    result = arranged(output.args[0])
    if len(set(found)) < len(found):
        raise unsupported("a tensor is given back twice", "give it back once")
    return result


def _filled(result: Any, tensors: Any) -> Any:
    if result is None:
        return next(tensors)
    if isinstance(result, tuple):
        return tuple(_filled(one, tensors) for one in result)
    if isinstance(result, list):
        return [_filled(one, tensors) for one in result]
    return {name: _filled(one, tensors) for name, one in result.items()}
