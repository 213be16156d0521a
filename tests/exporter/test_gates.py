"""Gates in the ways that networks write them, and activation functions, in programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dsgc
import dsgc_runtime
from dsgc.programs.live import LiveProgram
from tests.exporter.networks import assert_program_agrees
from tests.exporter.test_operations import X, sparse_of

GATES: dict[str, Callable[[Any, Any], Any]] = {
    "new axes": lambda m, x: x * torch.sigmoid(x.mean((2, 3))[:, :, None, None]),
    "new axes at the end": lambda m, x: x * F.hardsigmoid(x.mean((2, 3))[..., None, None]),
    "view": lambda m, x: x * m.norm(x.mean((2, 3))).view(x.size(0), x.size(1), 1, 1),
    "unsqueeze twice": lambda m, x: x * x.mean([-1, -2]).unsqueeze(-1).unsqueeze(-1),
    "unsqueeze as a function": lambda m, x: (
        x * torch.unsqueeze(torch.unsqueeze(x.mean((2, 3)), 2), 3)
    ),
    "unflatten": lambda m, x: x * m.unflatten(x.mean((2, 3))),
    "adaptive pooling": lambda m, x: x * F.hardsigmoid(m.squeeze(F.adaptive_avg_pool2d(x, 1))),
    "pooling of all pixels": lambda m, x: x * F.avg_pool2d(x, x.shape[2:]),
    "pooling of all pixels, by size": lambda m, x: x * F.avg_pool2d(x, x.size()[2:]).tanh(),
    "maximum of all pixels": lambda m, x: x * F.max_pool2d(x, kernel_size=x.shape[2:]),
    "pixel taken out": lambda m, x: (
        x * m.norm(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0])[:, :, None, None]
    ),
    "squeeze": lambda m, x: (
        x * m.norm(m.squeeze(x.mean((2, 3), True)).squeeze(-1).squeeze(-1)).view(-1, 32, 1, 1)
    ),
    "pixels as a vector": lambda m, x: x * x.flatten(2).mean(2)[:, :, None, None],
    "pixels as a vector, kept": lambda m, x: (
        x * x.view(x.size(0), x.size(1), -1).mean(-1, keepdim=True).unsqueeze(3)
    ),
    "pixels before channels": lambda m, x: (
        x * x.flatten(2).transpose(1, 2).mean(dim=1)[..., None, None]
    ),
    "expanded": lambda m, x: x * x.mean((2, 3), keepdim=True).expand_as(x),
    "expanded by numbers": lambda m, x: x * x.mean((2, 3), True).expand(-1, -1, *X.shape[2:]),
    "bounded": lambda m, x: x * F.hardtanh(x, -0.2, 0.3) + x.clamp(max=0.5),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_agree(name: str, tmp_path: Path) -> None:
    def between(m: Any, x: Any) -> Any:
        return GATES[name](m, x)

    sparse = sparse_of(between, 32)
    model = dsgc_runtime.load(dsgc.export(sparse, tmp_path / "model.dsgc", X))
    for batch in (3, 1):
        with torch.no_grad():
            live = sparse(X[:batch])
            with sparse.hold_selection():
                expected = sparse.semantic_graph(X[:batch])
        found = torch.from_numpy(model(X[:batch].numpy()))
        torch.testing.assert_close(live, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


FUNCTIONS: dict[str, nn.Module] = {
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 2.0),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(),
    "softplus, steep": nn.Softplus(beta=3.0, threshold=5.0),
    "softplus, early": nn.Softplus(beta=0.5, threshold=-2.0),
    "gelu": nn.GELU(),
    "gelu of tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
}


class Applied(nn.Module):
    """The same as functions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


AS_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, max_val=2.0),
    "hardtanh as it is": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": lambda x: F.softplus(x, 2, threshold=3.0),
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "clamp": lambda x: x.clamp(-1, 0.25),
    "clip": lambda x: torch.clip(x, min=0.5),
}
MODULES = {**FUNCTIONS, **{f"F: {name}": Applied(f) for name, f in AS_FUNCTIONS.items()}}


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (3, 17)], ids=["map", "matrix"])
@pytest.mark.parametrize("name", MODULES)
def test_functions_agree_from_small_to_large(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for scale in (1e-3, 1.0, 30.0, 3000.0):
        assert_program_agrees(MODULES[name], scale * torch.randn(shape))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_stays(name: str) -> None:
    x = torch.tensor([[float("nan"), 1.0, -1.0]])
    made = LiveProgram(fx.symbolic_trace(nn.Sequential(FUNCTIONS[name])), [x], [])([x])
    assert made.isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize("function", [lambda x: x.clamp(1.0, -1.0), lambda x: x.clamp(x * 0.5)])
def test_bounds_that_meet_or_depend_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(dsgc.ExportError, match="is a clamp"):
        LiveProgram(fx.symbolic_trace(Applied(function)), [X], [])
