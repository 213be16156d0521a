"""What can go wrong with an artifact, by type."""

from __future__ import annotations

import reprlib

__all__ = [
    "ArtifactError",
    "DamagedArtifactError",
    "InputError",
    "NewerFormatError",
    "RuntimeBuildError",
    "WrongMachineError",
    "shown",
]


class RuntimeBuildError(RuntimeError):
    """The OpenMP shim could not be built: no C compiler, or the compiler failed."""


class ArtifactError(ValueError):
    """An artifact cannot be used. Nothing of it was run."""


class DamagedArtifactError(ArtifactError):
    """A file is not an artifact, or not as it was written."""


class NewerFormatError(ArtifactError):
    """An artifact was written in a format that this runtime does not know."""


class WrongMachineError(ArtifactError):
    """An artifact was compiled for another processor."""


class InputError(ValueError):
    """An input does not have the shape, dtype or device that the model takes."""


def shown(value: object) -> str:
    """A value out of an artifact as messages show it: short, however long or deep it is."""
    return reprlib.repr(value)
