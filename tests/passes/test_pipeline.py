"""Passes are verified: one that breaks its promise is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

import dsgc
from dsgc.passes.context import Context
from dsgc.passes.pipeline import (
    ANALYSIS,
    LOWERING,
    PREPARATION,
    SEMANTIC,
    Pass,
    run_passes,
    write_to,
)
from dsgc.passes.verify import every_layer_decided, shapes_known
from tests.passes.agreement import compiled


def traced(model: nn.Module) -> tuple[fx.GraphModule, Context]:
    context = Context(model, dsgc.SparsityConfig(), lambda decision: nn.Identity())
    return fx.symbolic_trace(model), context


def test_every_pass_is_named_by_its_file() -> None:
    for one in (*PREPARATION, *ANALYSIS, *SEMANTIC, *LOWERING):
        assert one.run.__module__ == f"dsgc.passes.{one.name}"


def test_precondition_is_checked() -> None:
    gm, context = traced(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(dsgc.VerificationError, match="before choose_layers: no shapes"):
        run_passes(gm, context, ANALYSIS)


def test_postcondition_is_checked() -> None:
    def forget(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        return gm

    gm, context = traced(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(dsgc.VerificationError, match=r"forget.*no decision about"):
        run_passes(gm, context, (Pass(forget, after=(every_layer_decided,)),))
    with pytest.raises(dsgc.VerificationError, match="bug in dsgc"):
        run_passes(gm, context, (Pass(forget, before=(shapes_known,)),))


def test_malformed_graph_is_found() -> None:
    def break_it(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        next(n for n in gm.graph.nodes if n.op == "call_module").target = "nowhere"
        return gm

    gm, context = traced(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(dsgc.VerificationError, match="malformed"):
        run_passes(gm, context, (Pass(break_it),))


def test_graphs_are_written_after_every_pass(tmp_path: Path) -> None:
    gm, context = traced(nn.Sequential(nn.Linear(2, 2), nn.Identity()))
    run_passes(gm, context, PREPARATION, write_to(tmp_path))
    (file,) = tmp_path.iterdir()
    assert file.name == "000_functionalize.txt"
    assert "def forward" in file.read_text()


def test_all_operators_are_of_one_namespace() -> None:
    x = torch.randn(4, 8, 8, 8)
    model = nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 2, 1))
    sparse = compiled(model, x, rules={"0": 0.5}, backend="tvm", block=8)
    assert "torch.ops.dsgc_cpu.conv2d" in sparse.lowered_graph.code
    assert "torch.ops.dsgc." not in sparse.lowered_graph.code
