"""He's residual networks: the CIFAR form and the ImageNet form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgc.zoo._layers import scaled

__all__ = ["BasicBlock", "Bottleneck", "CifarResNet", "PadShortcut", "ResNet"]


class PadShortcut(nn.Module):
    """Shortcut without parameters: every `stride`-th pixel, new channels filled with zeros."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H/stride), ceil(W/stride)]."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to `shortcut`, then ReLU."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H/stride), ceil(W/stride)]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        kept = x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(out + kept))


class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride) and 1x1 convolutions to 4x `channels`, added, then ReLU."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, 4*channels, ceil(H/stride), ceil(W/stride)]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        kept = x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(out + kept))


class CifarResNet(nn.Module):
    """6n+2 layers at 16/32/64 channels with parameter-free shortcuts; `depth=20` is n=3.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (arXiv 1512.03385),
    section 4.2, shortcut option A.

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies the channels of every group.
        depth: number of layers with parameters, 6n+2.

    Raises:
        ValueError: `depth` is not 6n+2.
    """

    def __init__(
        self, classes: int = 10, in_channels: int = 3, width: float = 1.0, *, depth: int = 20
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n+2 with n of at least 1, not {depth}")
        channels = scaled(16, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        layers: list[nn.Module] = []
        for group, units in enumerate((16, 32, 64)):
            for position in range((depth - 2) // 6):
                stride = 2 if group > 0 and position == 0 else 1
                planes = scaled(units, width)
                same = stride == 1 and channels == planes
                shortcut = None if same else PadShortcut(channels, planes, stride)
                layers.append(BasicBlock(channels, planes, stride, shortcut))
                channels = planes
        self.blocks = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.avgpool(self.blocks(x))
        return cast(Tensor, self.fc(torch.flatten(x, 1)))


class ResNet(nn.Module):
    """7x7 stem, max pooling, four groups at 64/128/256/512 channels, global average pooling.

    `BasicBlock` with (2, 2, 2, 2) is ResNet18, `Bottleneck` with (3, 4, 6, 3) is ResNet50.
    Source: He et al., CVPR 2016 (arXiv 1512.03385). As in torchvision, whose parameter names
    these are, the stride of a bottleneck sits on its 3x3 convolution.

    Args:
        block: what the groups are made of.
        layers: blocks of each group.
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies the channels of the stem and of every group.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        planes = [scaled(units, width) for units in (64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(in_channels, planes[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _group(block, planes[0], planes[0], layers[0], stride=1)
        expanded = [channels * block.expansion for channels in planes]
        self.layer2 = _group(block, expanded[0], planes[1], layers[1], stride=2)
        self.layer3 = _group(block, expanded[1], planes[2], layers[2], stride=2)
        self.layer4 = _group(block, expanded[2], planes[3], layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(expanded[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(Tensor, self.fc(torch.flatten(self.avgpool(x), 1)))


def _group(
    block: type[BasicBlock | Bottleneck], in_channels: int, planes: int, count: int, *, stride: int
) -> nn.Sequential:
    channels = planes * block.expansion
    shortcut: nn.Module | None = None
    if stride != 1 or in_channels != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = block(in_channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(channels, planes) for _ in range(count - 1)))
