"""Shapes of convolutions and linear layers: a linear layer is a convolution on maps of 1 x 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dsgc.config import LayerSettings
from dsgc.select.projection import search_dimension

__all__ = ["Geometry", "conv_padding", "search_cost"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Channels and window of a layer; `map_size` is (C, H, W) of a whole-map linear layer."""

    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    map_size: tuple[int, int, int] | None = None

    @property
    def window(self) -> int:
        """Inputs of one output neuron."""
        return self.in_channels * self.kernel[0] * self.kernel[1]


def conv_padding(conv: nn.Conv2d) -> Pair | None:
    """The symmetric zero padding of a convolution; None if "same" needs an uneven one."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    return (int(conv.padding[0]), int(conv.padding[1]))


def search_cost(
    settings: LayerSettings, geometry: Geometry, pixels: int, positions: int
) -> tuple[int, float]:
    """Multiply-adds of a search over one sample, and its cost relative to the dense layer.

    The cost leaves the projection of the input out, as the paper does: the projection is ternary.
    The oracle costs nothing here, because whoever asks for it studies accuracy.
    """
    g = geometry
    if settings.selector == "oracle":
        return positions * g.window * g.out_channels, 0.0
    if settings.selector == "random":
        return 0, 0.0
    taps = g.kernel[0] * g.kernel[1]
    dimension = search_dimension(settings, g.out_channels, g.in_channels, taps)
    if settings.projection == "window":
        search = dimension * (g.window + g.out_channels)
        return positions * search, dimension / g.window
    projecting = pixels * g.in_channels * dimension
    estimating = positions * taps * dimension * g.out_channels
    return projecting + estimating, dimension / g.in_channels
