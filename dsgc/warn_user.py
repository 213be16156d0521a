"""Warnings that point at the user's code."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

__all__ = ["warn_user"]

_INSIDE = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


def warn_user(message: str) -> None:
    """Warn about `message` at the line outside of dsgc and torch that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"dsgc: {message}", UserWarning, stacklevel=level)
