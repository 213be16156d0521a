"""The residual networks of the DSG study: few blocks, wide, ReLU before BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from dsgc.zoo._layers import conv_unit, scaled

__all__ = ["DsgBlock", "DsgResNet"]


class DsgBlock(nn.Module):
    """Two 3x3 convolutions, each followed by ReLU and BatchNorm; the sum stays as it is.

    A 1x1 convolution without BatchNorm is the shortcut wherever the shape changes.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the first convolution and of the shortcut.
        relu_first: ReLU before BatchNorm, the order of the paper.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, *, relu_first: bool = True
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_unit(in_channels, channels, stride=stride, relu_first=relu_first),
            *conv_unit(channels, channels, relu_first=relu_first),
        )
        same = stride == 1 and in_channels == channels
        self.shortcut = (
            nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H/stride), ceil(W/stride)]."""
        return cast(Tensor, self.body(x) + self.shortcut(x))


class DsgResNet(nn.Module):
    """Stem of 64 channels, three groups of blocks at 128/256/512 channels, FC1024, FC10.

    `blocks=(1, 1, 1)` is the study's ResNet8, `blocks=(2, 4, 3)` its ResNet20, which is not
    He's network of that name. The shortcut adds every sample to itself; in the released code it
    adds sample 0 to all of them, a slip that is not repeated here. The stem has one ReLU and one
    BatchNorm where the released code has two of each in a row.

    Source: Liu et al., ICLR 2019 (arXiv 1810.00859) and the first author's published code.

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies every hidden width.
        image_size: height and width of the input image, a multiple of 8.
        blocks: blocks of each group.
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
        blocks: Sequence[int] = (1, 1, 1),
        relu_first: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.stem = nn.Sequential(*conv_unit(in_channels, channels, relu_first=relu_first))
        groups: list[nn.Module] = []
        for units, count in zip((128, 256, 512), blocks, strict=True):
            group: list[nn.Module] = []
            for position in range(count):
                stride = 2 if position == 0 else 1
                planes = scaled(units, width)
                group.append(DsgBlock(channels, planes, stride, relu_first=relu_first))
                channels = planes
            groups.append(nn.Sequential(*group))
        self.groups = nn.Sequential(*groups)
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
        return cast(Tensor, self.classifier(self.groups(self.stem(x))))
