"""What can go wrong, by type. Every message says what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ConfigError",
    "DsgcError",
    "ExportError",
    "InputError",
    "KernelError",
    "MissingPackageError",
    "NothingToSparsifyError",
    "ShapesUnknownError",
    "TraceError",
    "UnknownGraphError",
    "UnknownLayerError",
    "UnsupportedError",
    "VerificationError",
]


class DsgcError(Exception):
    """Base of all errors raised by dsgc on purpose."""


class ConfigError(DsgcError, ValueError):
    """A setting has a value it cannot have. `field` names the setting."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownLayerError(ConfigError):
    """A rule names a layer that the model does not have."""


class TraceError(DsgcError):
    """There is no single graph of the model, or of a part of it; says which code is not in one."""


class NothingToSparsifyError(DsgcError):
    """No layer of the model was made sparse. `reasons` has the reason for every layer."""

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons: dict[str, str] = dict(reasons or {})


class UnsupportedError(DsgcError):
    """A dtype, device, layer or way of running that dsgc or the asked backend does not support."""


class InputError(DsgcError, ValueError):
    """An input of the compiled module cannot be used."""


class ShapesUnknownError(DsgcError):
    """A graph was asked for before the compiler had seen the shapes of an input."""


class UnknownGraphError(DsgcError, KeyError):
    """A graph was asked for that no pass made."""

    def __str__(self) -> str:
        return str(self.args[0])


class KernelError(DsgcError):
    """Generated kernels could not be built, loaded or run."""


class ExportError(DsgcError):
    """A compiled model cannot be written as an artifact. Nothing was written."""


class MissingPackageError(DsgcError, ImportError):
    """A package that only some features need is not installed. The message names the command."""


class VerificationError(DsgcError):
    """A pass left the graph in a state it promises not to: a bug in dsgc, please report it."""
