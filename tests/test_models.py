"""Every network of the zoo takes a training step, and both graphs agree on it.

Small images and narrow layers keep this fast. Since the cost model rightly keeps such small layers
dense, rules make every convolution and linear layer sparse but the first and the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from dsgc import zoo


@dataclass(frozen=True)
class Case:
    """A network, small: its width, image and batch."""

    name: str
    width: float
    image_size: int
    batch: int = 4


CASES = (
    Case("mlp", 0.0625, 28, batch=6),
    Case("lenet5", 4.0, 28),
    Case("vgg8", 0.25, 16),
    Case("dsg_resnet8", 0.25, 16),
    Case("dsg_resnet20", 0.25, 16),
    Case("resnet20", 1.0, 16),
    Case("wrn16_4", 0.5, 16),
    Case("alexnet", 0.25, 67),
    Case("vgg16", 0.25, 32),
    Case("vgg16_bn", 0.25, 32),
    Case("resnet18", 0.25, 64),
    Case("resnet50", 0.25, 64),
)


def network(case: Case, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in a state in which its gradient is well defined, and a batch.

    Dropout is off: its random numbers would differ by graph. BatchNorm's scales and shifts are
    random: with a shift of zero, a channel that has one active entry normalises it to zero, right
    on the kink of the ReLU, and rounding decides about the gradient. A large eps keeps channels
    with few entries from multiplying rounding errors by 300.
    """
    model = zoo.build(case.name, classes=10, width=case.width, image_size=case.image_size)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.eps = 0.1
    channels = zoo.NETWORKS[case.name].in_channels
    images = torch.randn(case.batch, channels, case.image_size, case.image_size, dtype=dtype)
    return model.to(dtype), images, torch.randint(10, (case.batch,))


def compiled(model: nn.Module, backend: str) -> dsgc.SparseModule:
    """The sparse form of `model` at 80 %, in training mode."""
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    config = dsgc.SparsityConfig(sparsity=0.8, rules=dict.fromkeys(layers[1:-1], 0.8))
    return dsgc.compile(model, config=config, backend=backend).train()


def loss_and_gradients(
    graph: nn.Module, parameters: Mapping[str, nn.Parameter], images: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of one batch and its gradient for every parameter."""
    loss = F.cross_entropy(graph(images), labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, gradients, strict=True))


def assert_graphs_agree(
    sparse: dsgc.SparseModule, images: Tensor, labels: Tensor, tolerance: float
) -> None:
    """Loss and gradients of the two graphs differ by at most `tolerance` of their norm."""
    parameters = dict(sparse.named_parameters())
    with sparse.hold_selection():
        sparse(images)
        dense = [name for name, decision in sparse.decisions.items() if not decision.sparse]
        assert len(dense) == 2, "only the first and the last layer stay dense"
        meant = loss_and_gradients(sparse.semantic_graph, parameters, images, labels)
        done = loss_and_gradients(sparse.lowered_graph, parameters, images, labels)
    assert float((done[0] - meant[0]).abs() / meant[0].abs()) <= tolerance
    largest = max(float(gradient.norm()) for gradient in meant[1].values())
    for name, gradient in meant[1].items():
        # A gradient that is zero but for rounding is compared with the largest one.
        scale = max(float(gradient.norm()), 1e-3 * largest)
        assert float((done[1][name] - gradient).norm()) <= tolerance * scale, name


def test_every_network_is_tested() -> None:
    assert {case.name for case in CASES} == set(zoo.NAMES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_graphs_agree_in_float64(case: Case) -> None:
    model, images, labels = network(case, torch.float64)
    assert_graphs_agree(compiled(model, "reference"), images, labels, 1e-9)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_graphs_agree_in_float32_on_kernels(case: Case) -> None:
    model, images, labels = network(case, torch.float32)
    assert_graphs_agree(compiled(model, "tvm"), images, labels, 1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_training_step_moves_the_dense_model(case: Case) -> None:
    model, images, labels = network(case, torch.float32)
    sparse = compiled(model, "auto")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    F.cross_entropy(sparse(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    moved = [
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    ]
    assert moved
    assert [name for name, _ in sparse.named_parameters()] == list(before)
