"""The manifest of an artifact: read, and refused unless every part is what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dsgc_runtime.errors import DamagedArtifactError, NewerFormatError, shown
from dsgc_runtime.sizes import LIMIT, Size, parse

__all__ = [
    "DTYPES",
    "FORMAT",
    "MOST_BUFFERS",
    "Buffer",
    "Call",
    "Layer",
    "Manifest",
    "Port",
    "Read",
    "View",
    "constants_of",
    "views_of",
]

FORMAT = 1
DTYPES = {"float32": 4, "int32": 4, "int64": 8, "uint8": 1, "int8": 1}
MOST_BUFFERS = 1 << 14  # laying them out takes longer than their number
_MOST = 1_000_000  # calls, layers
_MOST_DIMENSIONS = 8
_MOST_DIGITS = 64  # of a number that is written as a text
Value = TypeVar("Value")


@dataclass(frozen=True)
class View:
    """The beginning of a buffer (a number) or of a constant (a name) as a contiguous tensor."""

    storage: int | str
    dtype: str
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Port:
    """An input or output of the model; its first dimension is the batch."""

    name: str
    view: View


@dataclass(frozen=True)
class Buffer:
    """Memory that is needed from the instruction `first` to the instruction `last`."""

    bytes: Size
    first: int
    last: int


@dataclass(frozen=True)
class Call:
    """A call of a kernel."""

    kernel: str
    layer: str
    arguments: tuple[View | Size | float, ...]


@dataclass(frozen=True)
class Read:
    """Takes the last number of a vector as the size `name`, at most `most`."""

    name: str
    layer: str
    view: View
    most: Size


@dataclass(frozen=True)
class Layer:
    """What the compiler made of a layer."""

    name: str
    sparse: bool
    reason: str
    sparsity: float
    multiply_adds: int


@dataclass(frozen=True)
class Manifest:
    """All of it; see `Manifest.of`."""

    dsgc: str
    target: str
    machine: str
    features: tuple[str, ...]
    dynamic: bool
    example: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    buffers: tuple[Buffer, ...]
    program: tuple[Call | Read, ...]
    layers: tuple[Layer, ...]
    files: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, content: object) -> Manifest:
        """The manifest in a decoded JSON value.

        Raises:
            NewerFormatError: its format is not known.
            DamagedArtifactError: something in it is missing or not possible.
        """
        found = content.get("format") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(found, int) or isinstance(found, bool):
            raise DamagedArtifactError("the manifest is not one of dsgc")
        if found != FORMAT:
            raise NewerFormatError(
                f"the artifact has format {shown(found)}, and this runtime reads {FORMAT}: "
                "install the version of dsgc-runtime that goes with the dsgc that wrote it"
            )
        return _Reader(content).manifest()


class _Reader:
    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.names = {"batch"}
        self.buffers = 0

    def manifest(self) -> Manifest:
        target, batch = (
            self.get(self.content, "target", dict),
            self.get(self.content, "batch", dict),
        )
        program = self.get(self.content, "program", list)
        for one in program:
            if isinstance(one, dict) and isinstance(one.get("read"), str):
                if one["read"] == "batch":
                    raise DamagedArtifactError("the program reads the batch")
                if one["read"] in self.names:
                    raise DamagedArtifactError(f"{shown(one['read'])} is read twice")
                self.names.add(one["read"])
        self.buffers = len(self.get(self.content, "buffers", list))
        end = len(program)
        made = Manifest(
            dsgc=self.get(self.content, "dsgc", str),
            target=self.get(target, "name", str),
            machine=self.get(target, "machine", str),
            features=tuple(self.texts(target, "features")),
            dynamic=self.get(batch, "dynamic", bool),
            example=self.count(batch, "example"),
            inputs=self.many(self.content, "inputs", self.port),
            outputs=self.many(self.content, "outputs", self.port),
            buffers=self.many(
                self.content, "buffers", lambda one: self.buffer(one, end), MOST_BUFFERS
            ),
            program=self.many(self.content, "program", self.instruction),
            layers=self.many(self.content, "layers", self.layer),
            files=self.files(),
        )
        _check_lifetimes(made)
        return made

    def get(self, owner: object, name: str, kind: type[Value]) -> Value:
        found = owner.get(name) if isinstance(owner, dict) else None
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise DamagedArtifactError(f"the manifest has no {name!r} that is a {kind.__name__}")
        if isinstance(found, str):
            _check_text(found)
        return found

    def count(self, owner: object, name: str) -> int:
        found = self.get(owner, name, int)
        if not 0 <= found < LIMIT:
            raise DamagedArtifactError(f"{name} cannot be {shown(found)}")
        return found

    def texts(self, owner: object, name: str) -> list[str]:
        found = self.get(owner, name, list)
        if not all(isinstance(one, str) for one in found):
            raise DamagedArtifactError(f"{name} must be a list of names")
        for one in found:
            _check_text(one)
        return found

    def many(
        self, owner: object, name: str, make: Callable[[object], Value], most: int = _MOST
    ) -> tuple[Value, ...]:
        found = self.get(owner, name, list)
        if len(found) > most:
            raise DamagedArtifactError(f"{len(found)} {name} are too many")
        return tuple(make(one) for one in found)

    def view(self, given: object) -> View:
        if not isinstance(given, dict):
            raise DamagedArtifactError("an argument is not a tensor")
        storage: object = given.get("buffer", given.get("constant"))
        known = isinstance(storage, str) or (
            isinstance(storage, int)
            and not isinstance(storage, bool)
            and 0 <= storage < self.buffers
        )
        dtype, shape = self.get(given, "dtype", str), self.get(given, "shape", list)
        if not known or dtype not in DTYPES or len(shape) > _MOST_DIMENSIONS:
            raise DamagedArtifactError(f"{shown(given)} is no tensor of the program")
        extents = tuple(parse(extent, self.names) for extent in shape)
        return View(storage, dtype, extents)  # type: ignore[arg-type]

    def port(self, given: object) -> Port:
        view = self.view(given)
        if not view.shape or view.shape[0] != "batch" or not isinstance(view.storage, int):
            raise DamagedArtifactError("an input or output has no batch dimension")
        if not all(isinstance(extent, int) for extent in view.shape[1:]):
            raise DamagedArtifactError("an input or output has a shape that is not fixed")
        return Port(self.get(given, "name", str), view)

    def buffer(self, given: object, end: int) -> Buffer:
        first, last = self.count(given, "first"), self.count(given, "last")
        if not first <= last <= end or not isinstance(given, dict):
            raise DamagedArtifactError("a buffer ends before it begins, or after the program")
        return Buffer(parse(given.get("bytes"), {"batch"}), first, last)

    def instruction(self, given: object) -> Call | Read:
        layer = self.get(given, "layer", str)
        arguments = self.get(given, "arguments", list)
        if isinstance(given, dict) and "read" in given:
            if len(arguments) != 1:
                raise DamagedArtifactError("a size is read from one vector")
            view = self.view(arguments[0])
            if view.dtype != "int32" or len(view.shape) != 1:
                raise DamagedArtifactError("a size is read from a vector of int32")
            most = parse(given.get("most"), {"batch"})
            return Read(self.get(given, "read", str), layer, view, most)
        kernel = self.get(given, "kernel", str)
        return Call(kernel, layer, tuple(self.argument(one) for one in arguments))

    def argument(self, given: object) -> View | Size | float:
        if isinstance(given, dict) and "int" in given:
            return parse(given["int"], self.names)
        if isinstance(given, dict) and "float" in given:
            text = self.get(given, "float", str)
            try:
                value = float(text) if len(text) <= _MOST_DIGITS else math.nan
            except ValueError:
                raise DamagedArtifactError("an argument is not a number") from None
            if math.isnan(value):
                raise DamagedArtifactError("an argument is not a number")
            return value
        return self.view(given)

    def layer(self, given: object) -> Layer:
        sparsity = self.get(given, "sparsity", float)
        if not 0 <= sparsity <= 1:
            raise DamagedArtifactError(f"a layer's sparsity cannot be {sparsity}")
        return Layer(
            self.get(given, "name", str),
            self.get(given, "sparse", bool),
            self.get(given, "reason", str),
            sparsity,
            self.count(given, "multiply_adds"),
        )

    def files(self) -> dict[str, tuple[str, int]]:
        found = {}
        for name, about in self.get(self.content, "files", dict).items():
            found[str(name)] = (self.get(about, "sha256", str), self.count(about, "bytes"))
        return found


def _check_text(text: str) -> None:
    """Refuse halves of characters, which JSON can hold and no file or terminal."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DamagedArtifactError(f"{shown(text)} is no text") from None


def _check_lifetimes(manifest: Manifest) -> None:
    """Refuse instructions that touch a buffer when its memory may be another's."""
    for number, step in enumerate(manifest.program):
        for view in views_of(step):
            if not isinstance(view.storage, int):
                continue
            buffer = manifest.buffers[view.storage]
            if not buffer.first <= number <= buffer.last:
                raise DamagedArtifactError(
                    f"instruction {number} touches buffer {view.storage}, which lives from "
                    f"{buffer.first} to {buffer.last}"
                )


def constants_of(program: Sequence[Call | Read]) -> set[str]:
    """The names of the constants that a program reads."""
    storages = {view.storage for step in program for view in views_of(step)}
    return {storage for storage in storages if isinstance(storage, str)}


def views_of(step: Call | Read) -> list[View]:
    """The tensors that an instruction works on."""
    arguments = step.arguments if isinstance(step, Call) else (step.view,)
    return [one for one in arguments if isinstance(one, View)]
