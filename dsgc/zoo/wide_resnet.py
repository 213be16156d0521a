"""Wide residual networks with pre-activation blocks."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dsgc.zoo._layers import scaled

__all__ = ["PreActivationBlock", "WideResNet"]


class PreActivationBlock(nn.Module):
    """BatchNorm -> ReLU -> 3x3 convolution, twice; the shortcut is 1x1 where channels change."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        same = stride == 1 and in_channels == channels
        self.shortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H/stride), ceil(W/stride)]."""
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        # A projecting shortcut reads the activated input, an identity the raw one.
        return cast(Tensor, out + (x if self.shortcut is None else self.shortcut(active)))


class WideResNet(nn.Module):
    """WRN-depth-k: groups of pre-activation blocks at 16k/32k/64k channels.

    Source: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016 (arXiv 1605.07146).

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies every channel count, on top of `widen`.
        depth: number of layers, 6n+4.
        widen: the paper's k.

    Raises:
        ValueError: `depth` is not 6n+4.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        *,
        depth: int = 16,
        widen: int = 4,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n+4 with n of at least 1, not {depth}")
        channels = scaled(16, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for group, units in enumerate((16, 32, 64)):
            for position in range((depth - 4) // 6):
                stride = 2 if group > 0 and position == 0 else 1
                planes = scaled(units * widen, width)
                layers.append(PreActivationBlock(channels, planes, stride))
                channels = planes
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, classes]."""
        x = self.relu(self.bn(self.blocks(self.conv1(x))))
        return cast(Tensor, self.fc(torch.flatten(self.avgpool(x), 1)))
