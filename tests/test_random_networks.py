"""Whatever a network looks like, compiled it computes what the dense model does."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsgc
import dsgc_runtime
from tests.every_block import ALL
from tests.passes.agreement import assert_graphs_agree, compiled
from tests.random_networks import RandomNetwork

SEEDS = st.integers(0, 10**6)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Results, gradients and buffers of a step."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(1)
    logits, values = model(x)
    ((logits * torch.arange(1.0, 8.0)).mean() + values.square().mean()).backward()
    assert x.grad is not None
    found = {"logits": logits.detach(), "values": values.detach(), "input": x.grad}
    found |= {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    own = "dsgc_selectors"
    return found | {n: b.clone() for n, b in model.named_buffers() if not n.startswith(own)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        # Of a gradient that is zero but for rounding nothing can be said.
        error = (found[name] - value).abs().max() / max(float(value.abs().max()), 1e-2 * largest)
        assert float(error) < 5e-3, f"{name} differs by {float(error)}"


def leaves(result: Any) -> dict[str, Tensor]:
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return {str(i): torch.as_tensor(np.asarray(x)) for i, x in enumerate(parts)}


@given(seed=SEEDS, channels_last=st.booleans())
@settings(max_examples=25, deadline=None)
def test_with_every_block_a_random_network_is_the_dense_one(seed: int, channels_last: bool) -> None:
    model = RandomNetwork(seed)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dense, sparse = copy.deepcopy(model), dsgc.compile(model, config=ALL)
    for _ in range(2):
        assert_same(step(sparse, model.example), step(dense, model.example))
    assert sparse.untraced == {}
    dense.eval(), sparse.eval()
    for batch in (5, 1, 0):
        x = torch.randn(batch, *model.example.shape[1:])
        with torch.no_grad():
            for one, other in zip(sparse(x), dense(x), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_both_graphs_of_a_random_network_agree(seed: int) -> None:
    model = RandomNetwork(seed).double()
    x = model.example.double()
    sparse = compiled(model, x, sparsity=0.6, block=8, rules={"re:.*": 0.6})
    assert_graphs_agree(sparse, x, tolerance=1e-7)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_an_artifact_of_a_random_network_computes_the_same(seed: int) -> None:
    model = RandomNetwork(seed, plain=True)
    sparse = dsgc.compile(model, config=ALL).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "random.dsgc"
        dsgc.export(sparse, path, model.example)
        artifact = dsgc_runtime.load(path)
    for batch in (5, 1):
        x = torch.randn(batch, *model.example.shape[1:])
        with torch.no_grad():
            expected = leaves(sparse(x))
        for name, value in leaves(artifact(x.numpy())).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)
