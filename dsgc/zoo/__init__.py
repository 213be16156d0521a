"""Networks to train and measure: those of the DSG study and the usual image classifiers.

`build("vgg8", classes=10)` makes one; `NAMES` lists them; `NETWORKS` says what each is made for.
All are plain PyTorch modules without anything sparse in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn

from dsgc.zoo.alexnet import AlexNet
from dsgc.zoo.dsg_resnet import DsgResNet
from dsgc.zoo.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet
from dsgc.zoo.small import MLP, LeNet5
from dsgc.zoo.vgg import VGG8, VGG16
from dsgc.zoo.wide_resnet import WideResNet

__all__ = ["NAMES", "NETWORKS", "Network", "build"]


@dataclass(frozen=True)
class Network:
    """A network's builder and the input it was published with.

    Attributes:
        builder: takes `classes`, `in_channels`, `width` and options of its own.
        in_channels: channels of the published input.
        image_size: height and width of the published input.
        classes: classes of the published task.
        fixed_size: the first linear layer reads a whole map, so `image_size` is built in.
    """

    builder: Callable[..., nn.Module]
    in_channels: int
    image_size: int
    classes: int
    fixed_size: bool = False


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "mlp": Network(MLP, 1, 28, 10, fixed_size=True),
        "lenet5": Network(LeNet5, 1, 28, 10, fixed_size=True),
        "vgg8": Network(VGG8, 3, 32, 10, fixed_size=True),
        "dsg_resnet8": Network(partial(DsgResNet, blocks=(1, 1, 1)), 3, 32, 10, fixed_size=True),
        "dsg_resnet20": Network(partial(DsgResNet, blocks=(2, 4, 3)), 3, 32, 10, fixed_size=True),
        "resnet20": Network(partial(CifarResNet, depth=20), 3, 32, 10),
        "wrn16_4": Network(partial(WideResNet, depth=16, widen=4), 3, 32, 10),
        "alexnet": Network(AlexNet, 3, 224, 1000),
        "vgg16": Network(VGG16, 3, 224, 1000),
        "vgg16_bn": Network(partial(VGG16, batch_norm=True), 3, 224, 1000),
        "resnet18": Network(partial(ResNet, BasicBlock, (2, 2, 2, 2)), 3, 224, 1000),
        "resnet50": Network(partial(ResNet, Bottleneck, (3, 4, 6, 3)), 3, 224, 1000),
    }
)

NAMES: tuple[str, ...] = tuple(NETWORKS)


def build(
    name: str,
    *,
    classes: int | None = None,
    in_channels: int | None = None,
    width: float = 1.0,
    image_size: int | None = None,
    **options: object,
) -> nn.Module:
    """The network called `name`, with new random parameters in float32.

    Args:
        name: one of `NAMES`.
        classes: number of outputs; by default that of the published task.
        in_channels: channels of the input; by default those of the published task.
        width: multiplies every hidden width.
        image_size: height and width of the input. Only networks whose first linear layer reads a
            whole map are built for one size; the others take any and do without it.
        options: passed to the network, such as `relu_first` or `dropout`.

    Raises:
        ValueError: the name is unknown, `width` is not positive and finite, or another number is
            not a whole one from 1 on.
        TypeError: the network has no such option.
    """
    network = NETWORKS.get(name)
    if network is None:
        raise ValueError(f"no network is called {name!r}; there are: {', '.join(NAMES)}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive and finite, not {width!r}")
    counts = {"classes": classes, "in_channels": in_channels, "image_size": image_size}
    for what, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError(f"{what} must be a whole number from 1 on, not {count!r}")
    if network.fixed_size:
        options["image_size"] = network.image_size if image_size is None else image_size
    return network.builder(
        classes=network.classes if classes is None else classes,
        in_channels=network.in_channels if in_channels is None else in_channels,
        width=width,
        **options,
    )
