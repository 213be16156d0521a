"""What is measured: one row a workload."""

from __future__ import annotations

from dsgc.bench.workload import Workload

__all__ = ["WORKLOADS"]

WORKLOADS: tuple[Workload, ...] = (
    Workload("vgg8", sparsity=0.8),
    Workload("vgg8", sparsity=0.5),
    Workload("vgg8", sparsity=0.9),
    Workload("vgg8", sparsity=0.8, mode="infer"),
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
