"""Pieces that several networks share."""

from __future__ import annotations

from torch import nn

__all__ = ["conv_unit", "scaled"]


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, rounded, at least 1."""
    return max(1, round(channels * width))


def conv_unit(
    in_channels: int,
    channels: int,
    *,
    stride: int = 1,
    batch_norm: bool = True,
    relu_first: bool = False,
) -> list[nn.Module]:
    """3x3 convolution, then BatchNorm -> ReLU, or ReLU -> BatchNorm where `relu_first`.

    The convolution has a bias only where no BatchNorm follows.
    """
    conv = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=not batch_norm)
    if not batch_norm:
        return [conv, nn.ReLU()]
    pair: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU()]
    return [conv, *(reversed(pair) if relu_first else pair)]
