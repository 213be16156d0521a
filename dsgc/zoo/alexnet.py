"""AlexNet in its one-tower form."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dsgc.zoo._layers import scaled

__all__ = ["AlexNet"]


class AlexNet(nn.Module):
    """Five convolutions and FC4096 twice, without groups and local response normalisation.

    Source: Krizhevsky, One weird trick for parallelizing convolutional neural networks
    (arXiv 1404.5997), after Krizhevsky et al., NIPS 2012. Any image of at least 63x63 pixels
    fits: the last map is averaged to 6x6, as in torchvision, whose parameter names these are.

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies every hidden width.
        dropout: probability of the two dropouts of the classifier.
    """

    def __init__(
        self,
        classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        *,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scaled(units, width) for units in (64, 192, 384, 256, 256))
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        hidden = scaled(4096, width)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(c5 * 36, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, classes]."""
        x = self.avgpool(self.features(x))
        return cast(Tensor, self.classifier(torch.flatten(x, 1)))
