"""What is measured: one row a workload."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dsgc import zoo

__all__ = ["WORKLOADS", "Workload"]


@dataclass(frozen=True)
class Workload:
    """A training step to measure.

    Attributes:
        network: a name of `dsgc.zoo`.
        batch: images of a step.
        sparsity: asked of `dsgc.compile`.
        image_size: height and width; None takes the network's own.
        classes: number of outputs; None takes the network's own.
        width: multiplies the network's channels.
        threads: of torch and of the generated kernels; None leaves torch's number.
    """

    network: str
    batch: int = 64
    sparsity: float = 0.8
    image_size: int | None = None
    classes: int | None = None
    width: float = 1.0
    threads: int | None = None

    @property
    def name(self) -> str:
        """`vgg8-b64-s80`, what the row is called."""
        size = f"-{self.image_size}px" if self.image_size else ""
        size += f"-w{self.width:g}" if self.width != 1 else ""
        return f"{self.network}{size}-b{self.batch}-s{round(100 * self.sparsity)}"

    def with_changes(self, **changes: object) -> Workload:
        """The same with every change that is not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)  # type: ignore[arg-type]

    def model(self) -> nn.Module:
        """The dense network."""
        return zoo.build(
            self.network, classes=self.classes, width=self.width, image_size=self.image_size
        )

    def data(self) -> tuple[Tensor, Tensor]:
        """Random images [batch, C, H, W] in channels-last order and labels [batch]."""
        network = zoo.NETWORKS[self.network]
        size = self.image_size or network.image_size
        images = torch.randn(self.batch, network.in_channels, size, size)
        labels = torch.randint(self.classes or network.classes, (self.batch,))
        return images.contiguous(memory_format=torch.channels_last), labels


WORKLOADS: tuple[Workload, ...] = (
    Workload("vgg8", sparsity=0.8),
    Workload("vgg8", sparsity=0.5),
    Workload("vgg8", sparsity=0.9),
    Workload("mlp", batch=256),
    Workload("dsg_resnet8"),
    Workload("dsg_resnet20"),
    Workload("resnet20", batch=128),
    Workload("wrn16_4"),
    Workload("alexnet", batch=32),
    Workload("vgg16_bn", batch=8),
    Workload("resnet18", batch=16),
    Workload("resnet50", batch=8),
)
