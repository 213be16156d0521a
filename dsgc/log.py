"""Logging: silent unless somebody listens, or the environment variable DSGC_LOG names a level."""

from __future__ import annotations

import logging
import os
import sys
import warnings

__all__ = ["say_what_is_asked"]

_LEVELS = ("debug", "info", "warning", "error")


def say_what_is_asked() -> None:
    """Write records of the logger "dsgc" to standard error, from the level in DSGC_LOG on.

    "info" is a line a pass and a kernel. Without the variable nothing is written, and programs
    that configure `logging` themselves get the records all the same.
    """
    logger = logging.getLogger("dsgc")
    level = os.environ.get("DSGC_LOG", "").strip().lower()
    if not level:
        logger.addHandler(logging.NullHandler())
        return
    if level not in _LEVELS:
        warnings.warn(f"DSGC_LOG={level!r} is none of {', '.join(_LEVELS)}", stacklevel=3)
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
