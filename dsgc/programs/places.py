"""Where values go that an operation moves: found by running it on their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsgc.programs.values import Arranged, Rows

__all__ = ["Taken", "arranged_by", "is_channels_last", "is_in_order", "places_in", "taken"]


@dataclass(frozen=True)
class Taken:
    """Where the values of a map or matrix come from: channel `c` of pixel `p` is what stands in
    channel `skip[p] + channels[c]` of pixel `pixels[p]`, and zero where one of these is -1.

    Attributes:
        size: (C, H, W) of the result.
        pixels: int32 [H * W].
        skip: int32 [H * W].
        channels: int32 [C].
    """

    size: tuple[int, int, int]
    pixels: Tensor
    skip: Tensor
    channels: Tensor

    def run(self) -> tuple[int, int, int] | None:
        """Channels in their order, the same at every pixel: how many, from which on, and behind how
        many zeros. None for others.
        """
        there = (self.channels >= 0).nonzero().flatten()
        before, skip = int(there[0]), int(self.channels[there[0]])
        in_order = torch.equal(self.channels[there] - skip, (there - before).to(torch.int32))
        return None if bool(self.skip.any()) or not in_order else (len(there), skip, before)


def places_in(value: Rows | Arranged) -> Tensor:
    """The place of every value of a sample among those that lie in rows, of the sample's shape."""
    if isinstance(value, Arranged):
        return value.places
    shape = value.size[:1] if value.matrix else value.size
    return torch.arange(math.prod(value.size)).view(shape)


def is_in_order(places: Tensor) -> bool:
    """Whether values are all there, as they were."""
    return torch.equal(places.flatten(), torch.arange(places.numel()))


def is_channels_last(value: Arranged) -> bool:
    """Whether the last dimension is all channels of a pixel, in their order."""
    channels, height, width = value.rows.size
    behind = value.places[..., :1] + height * width * torch.arange(channels)
    return value.places.shape[-1] == channels and torch.equal(behind, value.places)


def arranged_by(
    run: Callable[[Tensor], Any], value: Rows | Arranged
) -> Arranged | list[Arranged] | None:
    """What `run` makes of a value, a list if it makes several; None if it computes something, mixes
    samples, or treats them differently.
    """
    rows, places = (value.rows if isinstance(value, Arranged) else value), places_in(value)
    count = math.prod(rows.size)  # of each of two samples, which must not meet
    # None is zero, nor an average of others: what is not among them was computed, or added.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2, count, dtype=torch.float64, generator=generator) + 1.0
    made = run(torch.where(places >= 0, drawn[:, places.clamp(min=0)], 0.0))
    ordered = drawn.flatten().sort()
    if isinstance(made, Tensor):
        return _arranged(made, ordered, rows)
    found = [_arranged(one, ordered, rows) for one in made]
    kept = [one for one in found if one is not None]
    return kept if len(kept) == len(found) else None


def _arranged(made: Tensor, drawn: tuple[Tensor, Tensor], rows: Rows) -> Arranged | None:
    if made.dim() < 2 or made.shape[0] != 2 or not made.numel():
        return None
    if (numbers := _numbers(made, drawn)) is None:
        return None
    mine, other = numbers
    if not torch.equal(other, torch.where(mine > 0, mine + math.prod(rows.size), 0)):
        return None
    return Arranged(rows, (mine - 1).contiguous())


def _numbers(made: Tensor, drawn: tuple[Tensor, Tensor]) -> Tensor | None:
    """From 1, the places of values among `drawn`, which are sorted, with their places; 0 for zeros.
    None if there are others.
    """
    ordered, places = drawn
    at = torch.searchsorted(ordered, made.contiguous()).clamp(max=len(ordered) - 1)
    found = torch.where(made == 0, 0, places[at] + 1)
    return found if bool(((made == 0) | (ordered[at] == made)).all()) else None


def taken(value: Arranged) -> Taken | None:
    """How a map or matrix is made of rows; None if its values lie otherwise, or are no map."""
    rows, places = value.rows, value.places
    if places.dim() not in (1, 3):
        return None
    mine, area = places.reshape(len(places), -1), rows.size[1] * rows.size[2]
    there = mine >= 0
    outputs, pixels = there.any(1).nonzero().flatten(), there.any(0).nonzero().flatten()
    if not len(outputs):
        return None
    first = int(outputs[0])
    channels = torch.where(there.any(1), mine[:, pixels[0]] // area, -1)
    skip = torch.where(there.any(0), mine[first] // area - channels[first], 0)
    near = torch.where(there.any(0), mine[first] % area, -1)
    expected = torch.full_like(mine, -1)
    expected[outputs[:, None], pixels] = (channels[outputs, None] + skip[pixels]) * area + near[
        pixels
    ]
    if not torch.equal(expected, mine):
        return None
    height, width = places.shape[1:] if places.dim() == 3 else (1, 1)
    size = (len(mine), int(height), int(width))
    return Taken(size, *(one.to(torch.int32) for one in (near, skip, channels)))
