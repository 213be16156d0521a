"""What configuration objects hold, laid out flat, to notice that it changed."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["same_leaf", "spread_out"]

_MOST = 5000  # leaves of an object that is looked into
_SIMPLE = (int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, type)
_BY_TEXT = (slice, range, torch.device)
_RECORDS = (types.SimpleNamespace, argparse.Namespace)


class _TooMuchError(Exception):
    """An object holds more than is worth looking into, or what is no data."""


def spread_out(value: Any) -> list[Any]:
    """The leaves of containers, records and objects that hold nothing but data; else `value` alone.

    Two values that are spread out alike, by `same_leaf`, do the same in recorded code.
    """
    try:
        return list(_limited(_leaves(value, plain=False, depth=0)))
    except _TooMuchError:
        return [value]


def same_leaf(now: Any, before: Any) -> bool:
    """Whether a leaf is the same object, or a simple one of equal value."""
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(before, float):
        return bool(now.hex() == before.hex())
    return isinstance(before, (int, str, bytes, frozenset, complex)) and bool(now == before)


def _limited(leaves: Iterator[Any]) -> Iterator[Any]:
    for count, leaf in enumerate(leaves):
        if count == _MOST:
            raise _TooMuchError
        yield leaf


def _leaves(value: Any, plain: bool, depth: int) -> Iterator[Any]:
    """With `plain` all that is no data is refused: what holds it may be a whole program."""
    if depth > 8:
        raise _TooMuchError
    if isinstance(value, _SIMPLE):
        yield value
    elif isinstance(value, _BY_TEXT):
        yield from (type(value), str(value))
    elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        yield from (type(value), str(value.dtype), str(value.shape))
        yield value.tobytes() if value.size <= _MOST else value
    elif isinstance(value, (set, frozenset)):
        yield from (type(value), frozenset(value))
    elif isinstance(value, (tuple, list)):
        yield from (type(value), len(value))
        for item in value:
            yield from _leaves(item, plain, depth + 1)
    elif isinstance(value, dict):
        yield from (type(value), len(value))
        for key, item in value.items():
            yield key
            yield from _leaves(item, plain, depth + 1)
    elif isinstance(value, _RECORDS) or dataclasses.is_dataclass(value):
        yield type(value)
        yield from _leaves(vars(value) if hasattr(value, "__dict__") else [], plain, depth + 1)
    elif not plain and not isinstance(value, (Tensor, torch.nn.Module)) and not callable(value):
        yield from _data_of(value, depth)
    elif plain:
        raise _TooMuchError
    else:
        yield value


def _data_of(value: Any, depth: int) -> list[Any]:
    """An object of some class: what it holds if that is data throughout, else itself."""
    if not hasattr(value, "__dict__"):
        return [value]
    try:
        return [type(value), *_limited(_leaves(vars(value), plain=True, depth=depth + 1))]
    except _TooMuchError:
        return [value]
