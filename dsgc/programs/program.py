"""The program of an artifact while it is written: kernel calls on buffers and constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsgc.codegen.families import Family
from dsgc.programs.sizes import Size, SizeLike, as_size, product
from dsgc_runtime.manifest import DTYPES

__all__ = ["Argument", "Call", "Emitted", "Program", "Read", "View"]

_TYPES = {
    torch.float32: "float32",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.int8: "int8",
}


@dataclass(frozen=True)
class View:
    """A whole buffer or constant, or its beginning, as a contiguous tensor.

    Attributes:
        storage: a buffer's number, or a constant's name.
        dtype: of the elements.
        shape: what a kernel sees.
    """

    storage: int | str
    dtype: str
    shape: tuple[Size, ...]

    def seen_as(self, *shape: SizeLike, dtype: str | None = None) -> View:
        """The same memory, from its beginning, with another shape."""
        return View(self.storage, dtype or self.dtype, tuple(as_size(extent) for extent in shape))

    def json(self) -> dict[str, Any]:
        """The form that the manifest holds."""
        kind = "buffer" if isinstance(self.storage, int) else "constant"
        shape = [extent.json() for extent in self.shape]
        return {kind: self.storage, "dtype": self.dtype, "shape": shape}


Argument = View | Size | float


@dataclass(frozen=True)
class Call:
    """A kernel call; `layer` is the node of the model that it belongs to."""

    kernel: str
    arguments: tuple[Argument, ...]
    layer: str

    def json(self) -> dict[str, Any]:
        """The form that the manifest holds."""
        return {
            "kernel": self.kernel,
            "layer": self.layer,
            "arguments": [_argument(one) for one in self.arguments],
        }


@dataclass(frozen=True)
class Read:
    """Looks at the last number of a vector: how many slots a selection has.

    Attributes:
        name: what sizes call it from now on.
        view: int32, one dimension.
        most: the largest that it may be; buffers are made for that.
    """

    name: str
    view: View
    most: Size
    layer: str

    def json(self) -> dict[str, Any]:
        """The form that the manifest holds."""
        return {
            "read": self.name,
            "layer": self.layer,
            "arguments": [self.view.json()],
            "most": self.most.json(),
        }


def _argument(value: Argument) -> dict[str, Any]:
    if isinstance(value, View):
        return value.json()
    return {"int": value.json()} if isinstance(value, Size) else {"float": repr(value)}


@dataclass
class Program:
    """Instructions in order, and what they work on.

    Attributes:
        buffers: bytes of every buffer; the first ones are inputs, see `input`.
        constants: tensors by name, as kernels read them.
        families: whose kernels are called, by kernel.
    """

    instructions: list[Call | Read] = field(default_factory=list)
    buffers: list[Size] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    families: dict[str, Family] = field(default_factory=dict)
    most: dict[str, Size] = field(default_factory=dict)
    layer: str = ""

    def buffer(self, *shape: SizeLike, dtype: str = "float32") -> View:
        """Fresh memory for as many elements as `shape` may have at most."""
        sizes = tuple(as_size(extent) for extent in shape)
        largest = product(tuple(self._largest(extent) for extent in sizes))
        self.buffers.append(largest * DTYPES[dtype])
        return View(len(self.buffers) - 1, dtype, sizes)

    def constant(self, tensor: Tensor, name: str) -> View:
        """A tensor to keep, perhaps a parameter's own; an equal one of that name is kept once."""
        stored = tensor.detach().contiguous()
        count, unique = 0, name
        while unique in self.constants:
            known = self.constants[unique]
            if known.dtype == stored.dtype and torch.equal(known, stored):
                break
            count += 1
            unique = f"{name}.{count}"
        else:
            self.constants[unique] = stored
        return View(unique, _TYPES[stored.dtype], tuple(Size(n) for n in stored.shape))

    def call(self, family: Family, kernel: str, *arguments: View | SizeLike | float) -> None:
        """Call `kernel` of `family`; whole numbers and sizes are passed as integers."""
        self.families[kernel] = family
        given = tuple(as_size(a) if isinstance(a, int) else a for a in arguments)
        self.instructions.append(Call(kernel, given, self.layer))

    def read(self, view: View, most: SizeLike) -> Size:
        """The last number of `view`, known when the program runs."""
        name = f"slots{len(self.most)}"
        self.most[name] = as_size(most)
        self.instructions.append(Read(name, view, as_size(most), self.layer))
        return Size(name)

    def lifetimes(self, outputs: Sequence[View]) -> list[tuple[int, int]]:
        """The first and last instruction that touches a buffer; outputs are needed to the end."""
        found: dict[int, tuple[int, int]] = {}
        end = len(self.instructions)
        for at, instruction in enumerate(self.instructions):
            views = instruction.arguments if isinstance(instruction, Call) else (instruction.view,)
            for view in views:
                if isinstance(view, View) and isinstance(view.storage, int):
                    first, _ = found.get(view.storage, (at, at))
                    found[view.storage] = (first, at)
        for view in outputs:
            if isinstance(view.storage, int):
                found[view.storage] = (found.get(view.storage, (0, 0))[0], end)
        return [found.get(number, (0, 0)) for number in range(len(self.buffers))]

    def _largest(self, size: Size) -> Size:
        """`size` with every count replaced by the most that it may be."""
        if isinstance(size.value, str):
            return self._largest(self.most[size.value]) if size.value in self.most else size
        if isinstance(size.value, tuple):
            operator, left, right = size.value
            return Size((operator, self._largest(left), self._largest(right)))
        return size


class Emitted:
    """A program with its inputs and outputs.

    Attributes:
        inputs: the buffers that callers fill, by argument name.
        outputs: the buffers with results, in the order of the model's flattened result.
        sparsity: the part of its neurons that a sparse layer leaves out, by layer.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.inputs: dict[str, View] = {}
        self.outputs: list[View] = []
        self.sparsity: dict[str, float] = {}

    def json(self) -> dict[str, Any]:
        """The part of a manifest that says what is computed."""
        program = self.program
        lifetimes = program.lifetimes(self.outputs)
        return {
            "inputs": [_port(name, view) for name, view in self.inputs.items()],
            "outputs": [_port(f"output{i}", view) for i, view in enumerate(self.outputs)],
            "buffers": [
                {"bytes": size.json(), "first": first, "last": last}
                for size, (first, last) in zip(program.buffers, lifetimes, strict=True)
            ],
            "program": [instruction.json() for instruction in program.instructions],
        }


def _port(name: str, view: View) -> dict[str, Any]:
    return {"name": name, **view.json()}
