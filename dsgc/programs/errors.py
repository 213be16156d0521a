"""Saying that a model cannot be exported, where, and what to do."""

from __future__ import annotations

from dsgc.errors import ExportError

__all__ = ["unsupported"]


def unsupported(what: str, remedy: str) -> ExportError:
    """The error for a model that cannot leave as an artifact."""
    return ExportError(f"{what}, which an artifact cannot hold yet: {remedy}")
