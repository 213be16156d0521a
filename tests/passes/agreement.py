"""Comparing the two graphs of a sparse module: results, all gradients, running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import dsgc

__all__ = ["assert_graphs_agree", "compiled", "targets", "unsettle"]


def compiled(
    model: nn.Module, *inputs: Tensor, backend: str = "reference", **settings: Any
) -> dsgc.SparseModule:
    """`model` compiled for `inputs`."""
    config = dsgc.SparsityConfig(**settings)
    return dsgc.compile(model, config=config, example_inputs=inputs, backend=backend)


def _total(result: Any) -> Tensor:
    leaves = torch.utils._pytree.tree_leaves(result)
    weights = [0.5 + torch.arange(x.numel()).remainder(7).view(x.shape) for x in leaves]
    total = torch.zeros(())
    for leaf, weight in zip(leaves, weights, strict=True):
        total = total + (leaf * weight).sum() + leaf.square().sum()
    return total


def _run(graph: nn.Module, sparse: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    state = {name: b.clone() for name, b in sparse.named_buffers()}
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    sparse.zero_grad()
    torch.manual_seed(1)
    loss = _total(graph(*leaves))
    loss.backward()  # type: ignore[no-untyped-call]
    found = {"loss": loss.detach()}
    found |= {f"input {i}": x.grad for i, x in enumerate(leaves) if x.grad is not None}
    found |= {n: p.grad for n, p in sparse.named_parameters() if p.grad is not None}
    found |= {f"buffer {n}": b.clone() for n, b in sparse.named_buffers()}
    for name, buffer in sparse.named_buffers():
        buffer.copy_(state[name])
    return found


def assert_graphs_agree(
    sparse: dsgc.SparseModule, *inputs: Tensor, tolerance: float = 1e-10
) -> None:
    """Loss, gradients and running statistics of both graphs, in training and in eval mode."""
    for mode in (True, False):
        sparse.train(mode)
        with sparse.hold_selection():
            expected = _run(sparse.semantic_graph, sparse, inputs)
            found = _run(sparse.lowered_graph, sparse, inputs)
        assert expected.keys() == found.keys()
        # The gradient of a bias before a batch norm is zero: it is compared with the others.
        gradients = [v.abs().max() for n, v in expected.items() if not n.startswith("buffer")]
        floor = float(max(gradients)) * 1e-2
        for name, value in expected.items():
            scale = max(float(value.abs().max()), floor) if value.numel() else 1.0
            error = (found[name] - value).abs().max() / scale if value.numel() else 0.0
            assert float(error) < tolerance, f"{name} differs by {float(error)} (training={mode})"


def unsettle(model: nn.Module) -> nn.Module:
    """Move the parameters of norms off 0 and 1, where rounding decides about ReLU and ties."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.5)
    return model


def targets(graph: torch.fx.GraphModule) -> list[str]:
    """The names of all functions and modules that a graph calls."""
    names = []
    for node in graph.graph.nodes:
        if node.op == "call_function":
            names.append(getattr(node.target, "_opname", getattr(node.target, "__name__", "?")))
        elif node.op.startswith("call"):
            names.append(str(node.target))
    return names
