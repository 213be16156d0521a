"""Compiled kernels on disk, named by the hash of everything they depend on.

A library is written to a directory of its own and renamed into place together with the hash of its
bytes, so that a reader sees all of it or nothing; processes that build the same library at the same
time do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from dsgc.errors import KernelError

__all__ = ["KernelCache", "content_key", "default_directory"]


def content_key(*parts: str) -> str:
    """A name that differs whenever one of ``parts`` does."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return f"{parts[0]}-{digest.hexdigest()[:24]}"


def default_directory() -> Path:
    """``$DSGC_CACHE`` if set, else the user's cache directory."""
    chosen = os.environ.get("DSGC_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("dsgc")) / "kernels"


class KernelCache:
    """A directory of compiled kernel libraries.

    Args:
        directory: where they are kept; made when first needed.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or default_directory()

    def get(self, key: str, build: Callable[[Path], object], name: str = "kernels.so") -> Path:
        """The file ``name`` of the entry ``key``, made by ``build(path)`` if it is missing or
        damaged.

        Raises:
            KernelError: the directory cannot be written, or ``build`` failed.
        """
        entry = self.directory / key
        if _intact(entry, name):
            return entry / name
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=f"{key}.") as scratch:
                fresh = Path(scratch) / "entry"
                fresh.mkdir()
                build(fresh / name)
                (fresh / "sha256").write_text(_digest(fresh / name), encoding="utf-8")
                self._publish(fresh, entry, Path(scratch), name)
        except KernelError:
            raise
        except Exception as error:
            raise KernelError(
                f"the kernels {key} could not be built in {self.directory}: {error}; check that a "
                "C++ compiler (g++) is installed and that the directory can be written, or choose "
                "another one with the environment variable DSGC_CACHE"
            ) from error
        return entry / name

    def _publish(self, fresh: Path, entry: Path, scratch: Path, name: str) -> None:
        if entry.exists() and not _intact(entry, name):
            # A damaged entry is moved out of the way, not edited: another process may have it open.
            entry.replace(scratch / "damaged")
        try:
            fresh.rename(entry)
        except OSError:
            # Somebody else was faster, and their library is as good.
            if not _intact(entry, name):
                raise


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _intact(entry: Path, name: str) -> bool:
    try:
        return _digest(entry / name) == (entry / "sha256").read_text(encoding="utf-8")
    except OSError:
        return False
