"""Writing results so that a reader never sees half of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from dsgc.errors import ConfigError

__all__ = ["check_place", "write_json", "write_text", "write_whole"]


def check_place(path: Path) -> None:
    """Raise ConfigError if `path` cannot be written: better now than after hours of work."""
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{path} cannot be written: {folder} is not a directory to write to", "path"
        )
    if path.is_dir():
        raise ConfigError(f"{path} cannot be written: it is a directory", "path")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of a temporary name, then give it the name `path`.

    What a link points to is replaced, not the link; pipes and devices are written to as they are.

    Raises:
        ConfigError: there is no such place.
        OSError: it cannot be written; `path` is as it was.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    path = path.resolve()
    check_place(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, all of it or nothing.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, all of it or nothing.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
