"""Words that tables and sentences share."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["listed", "short_place"]


def listed(names: Sequence[str], most: int) -> str:
    """Names with commas; of more than `most` the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def short_place(where: str) -> str:
    """`file:line` without the folders."""
    return where.rpartition("/")[2]
