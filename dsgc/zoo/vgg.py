"""Plain stacks of 3x3 convolutions: VGG8 and VGG16."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from dsgc.zoo._layers import conv_unit, scaled

__all__ = ["VGG8", "VGG16"]

_VGG16: tuple[int | Literal["pool"], ...] = (
    *(64, 64, "pool"),
    *(128, 128, "pool"),
    *(256, 256, 256, "pool"),
    *(512, 512, 512, "pool"),
    *(512, 512, 512, "pool"),
)


class VGG8(nn.Module):
    """VGG8 for CIFAR: 2x128, 2x256 and 2x512 3x3 convolutions, pooled in between, FC1024, FC10.

    Source: Liu et al., ICLR 2019 (arXiv 1810.00859) and the first author's published code.

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies every hidden width.
        image_size: height and width of the input image, a multiple of 8.
        relu_first: ReLU before BatchNorm, the order of the paper.
        dropout: probability of the dropout before the last layer.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        *,
        image_size: int = 32,
        relu_first: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for units in (128, 256, 512):
            for _ in range(2):
                layers += conv_unit(channels, scaled(units, width), relu_first=relu_first)
                channels = scaled(units, width)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = scaled(1024, width)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (image_size // 8) ** 2, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> [N, classes]."""
        return cast(Tensor, self.classifier(self.features(x)))


class VGG16(nn.Module):
    """VGG16 (configuration D): 13 3x3 convolutions in five pooled groups, FC4096 twice.

    Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
    Recognition, ICLR 2015 (arXiv 1409.1556). Any image of at least 32x32 pixels fits: the last
    map is averaged to 7x7, as in torchvision, whose parameter names these are.

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies every hidden width.
        batch_norm: BatchNorm after every convolution, which then has no bias.
        dropout: probability of the two dropouts of the classifier.
    """

    def __init__(
        self,
        classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        *,
        batch_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for units in _VGG16:
            if isinstance(units, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += conv_unit(channels, scaled(units, width), batch_norm=batch_norm)
                channels = scaled(units, width)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = scaled(4096, width)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, classes]."""
        x = self.avgpool(self.features(x))
        return cast(Tensor, self.classifier(torch.flatten(x, 1)))
