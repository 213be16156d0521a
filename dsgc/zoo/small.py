"""Small networks for 28x28 images: a multi-layer perceptron and LeNet-5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from dsgc.zoo._layers import scaled

__all__ = ["MLP", "LeNet5"]


class MLP(nn.Module):
    """Perceptron 784-4096-4096-10 with ReLU, the fully connected network of the DSG study.

    Source: Liu et al., Dynamic Sparse Graph for Efficient Deep Learning, ICLR 2019
    (arXiv 1810.00859).

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies the hidden widths.
        image_size: height and width of the input image.
        hidden: hidden widths before `width` is applied.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        width: float = 1.0,
        *,
        image_size: int = 28,
        hidden: Sequence[int] = (4096, 4096),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        features = in_channels * image_size**2
        for units in hidden:
            layers += [nn.Linear(features, scaled(units, width)), nn.ReLU()]
            features = scaled(units, width)
        self.layers = nn.Sequential(*layers, nn.Linear(features, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> [N, classes]."""
        return cast(Tensor, self.layers(x))


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling: two 5x5 convolutions, then 120-84-classes.

    Source: LeCun et al., Gradient-based learning applied to document recognition, 1998. The first
    convolution is padded so that 28x28 images give the 32x32 network's map sizes.

    Args:
        classes: number of outputs.
        in_channels: channels of the input image.
        width: multiplies every hidden width.
        image_size: height and width of the input image, at least 12.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        width: float = 1.0,
        *,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        c1, c2, f1, f2 = (scaled(units, width) for units in (6, 16, 120, 84))
        side = (image_size // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(c1, c2, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(c2 * side**2, f1),
            nn.ReLU(),
            nn.Linear(f1, f2),
            nn.ReLU(),
            nn.Linear(f2, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> [N, classes]."""
        return cast(Tensor, self.classifier(self.features(x)))
