"""Profiler ranges around every node, and logging when it is asked for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from tests.inspect.networks import X, residual


def test_the_profiler_sees_layers_by_name() -> None:
    sparse = residual().train()
    with torch.profiler.profile() as profile:
        sparse(X).sum().backward()
    names = {event.key for event in profile.key_averages()}
    for layer in ("first", "second", "third"):
        assert f"dsgc: {layer}: conv2d (forward)" in names
        assert f"dsgc: {layer}: conv2d (backward)" in names
        assert f"dsgc: {layer}: PackedSelection (forward)" in names
    assert "dsgc: head: Linear (backward)" in names


def test_kernels_are_inside_their_ranges() -> None:
    sparse = residual()
    with torch.profiler.profile() as profile:
        sparse(X)
    events = profile.events()
    assert events is not None
    ranges = [one for one in events if one.name == "dsgc: second: conv2d (forward)"]
    kernels = [one for one in events if one.name.startswith("dsgc_cpu::conv2d")]
    assert len(ranges) == 1
    inside = [
        kernel
        for kernel in kernels
        if ranges[0].time_range.start <= kernel.time_range.start
        and kernel.time_range.end <= ranges[0].time_range.end
    ]
    assert len(inside) == 1


def test_results_are_the_same_under_a_profiler() -> None:
    sparse = residual().train()
    state = {name: value.clone() for name, value in sparse.state_dict().items()}
    plain = sparse(X)
    plain.sum().backward()
    weights = dict(sparse.named_parameters())
    before = {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}
    sparse.zero_grad()
    sparse.load_state_dict(state)
    with torch.profiler.profile():
        watched = sparse(X)
        watched.sum().backward()
    torch.testing.assert_close(watched, plain)
    for name, grad in before.items():
        torch.testing.assert_close(weights[name].grad, grad)


def test_a_line_a_pass_and_a_kernel(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dsgc"):
        residual()(X)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("pass insert_selection: ") for line in lines)
    assert sum(line.startswith("pass lower_to_packed: ") for line in lines) == 1


PROGRAM = """
import torch, dsgc
from torch import nn
rules = [dsgc.Rule("0", sparsity=0.75)]
model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1))
config = dsgc.SparsityConfig(rules=rules, block=8)
x = torch.randn(1, 16, 6, 6)
dsgc.compile(model, config=config, example_inputs=x)(x)
"""


@pytest.mark.parametrize("level", ["", "info", "loud"])
def test_the_variable_turns_it_on(level: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", PROGRAM],
        env={**os.environ, "DSGC_LOG": level},
        capture_output=True,
        text=True,
        check=True,
    )
    if level == "info":
        assert "I dsgc.passes.pipeline: pass choose_kernels: " in done.stderr
        assert "kernel " in done.stderr
    elif level == "loud":
        assert "DSGC_LOG='loud' is none of debug, info, warning, error" in done.stderr
    else:
        assert done.stderr == ""
