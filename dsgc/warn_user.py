"""Which files are not the user's code, and warnings that point at it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

__all__ = ["NOT_THE_USERS", "warn_user"]

NOT_THE_USERS = (str(Path(__file__).parent), str(Path(torch.__file__).parent))
"""The folders of dsgc and torch."""


def warn_user(message: str) -> None:
    """Warn about `message` at the line outside of dsgc and torch that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"dsgc: {message}", UserWarning, stacklevel=level)
