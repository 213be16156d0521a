"""The record of passes, texts and differences, graphs for other tools, and analyses."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import networkx
import pytest
import torch
from torch import nn

import dsgc
from dsgc.inspect.analyses import critical_path, liveness, lost_sparsity, mask_groups
from dsgc.passes.pipeline import ANALYSIS, LOWERING, PREPARATION, SEMANTIC
from tests.inspect.networks import LooksAtData, X, config, residual


def test_every_pass_is_recorded() -> None:
    names = [one.name for one in (*PREPARATION, *ANALYSIS, *SEMANTIC, *LOWERING)]
    assert residual().record().names == ("trace", *names)


def test_recorded_graphs_compute_what_the_module_does() -> None:
    sparse = residual()
    record = sparse.record()
    with sparse.hold_selection(), torch.no_grad():
        right = sparse(X)
        for name in ("semantic", "lowered", "insert_double_mask", "lower_to_packed"):
            graph = record[name].graph_module.eval()
            torch.testing.assert_close(graph(X), right, rtol=1e-4, atol=1e-5)
        dense = record["dense"].graph_module
        torch.testing.assert_close(dense(X), sparse.to_dense().eval()(X))


def test_recording_changes_nothing() -> None:
    sparse = residual()
    before = sparse.lowered_graph.code
    state = {name: value.clone() for name, value in sparse.state_dict().items()}
    sparse.record()
    assert sparse.lowered_graph.code == before
    assert all(torch.equal(state[name], value) for name, value in sparse.state_dict().items())


def test_text_has_source_lines_shapes_and_what_is_packed() -> None:
    sparse = residual()
    text = sparse.graph("lowered").text()
    assert "# second  " in text
    assert "networks.py:" in text
    assert "first: float32[4, 32, 8, 8] = conv2d(" in text
    assert "# packed by first_mask_index, density 25%" in text
    semantic = str(sparse.graph("semantic"))
    assert "masked by first_mask, density 25%" in semantic
    assert "dense: it has 4 groups" in semantic
    assert semantic.rstrip().splitlines()[-1].startswith("return ")


def test_differences_between_passes() -> None:
    record = residual().record()
    diff = record.diff("insert_double_mask")
    assert "--- insert_selection\n+++ insert_double_mask" in diff
    removed = [line for line in diff.splitlines() if line.startswith("-n")]
    added = [line for line in diff.splitlines() if line.startswith("+n")]
    assert len(removed) == len(added) == 2
    assert all("MaskedBatchNorm" in line for line in added)
    assert record.diff("trace") == ""
    assert record.diff("share_pool_masks") == ""
    assert "=== insert_selection" in str(record)


def test_unknown_graphs() -> None:
    sparse = residual()
    with pytest.raises(dsgc.UnknownGraphError, match="there are dense, semantic, lowered, trace"):
        sparse.graph("packed")
    with pytest.raises(dsgc.ShapesUnknownError):
        dsgc.compile(nn.Sequential(nn.Conv2d(16, 32, 3)), 0.8).graph()
    parts = dsgc.compile(LooksAtData(), config=config("body.0"), example_inputs=X)
    with pytest.raises(dsgc.TraceError, match="no single graph"):
        parts.record()


def test_networkx() -> None:
    view = residual().graph("lowered")
    graph = view.to_networkx()
    nodes = list(view.graph_module.graph.nodes)
    assert set(graph) == {node.name for node in nodes}
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.number_of_edges() == sum(len(node.all_input_nodes) for node in nodes)
    first = graph.nodes["first"]
    assert (first["kind"], first["packed"], first["layer"]) == ("sparse", True, "first")
    assert first["shape"] == (4, 32, 8, 8)
    assert 0 < first["multiply_adds"] < 8 * 8 * 9 * 16 * 32
    (edge,) = graph.get_edge_data("first", "norm_norm").values()
    assert edge["packed"]
    assert edge["mask"] == "first_mask_index"


def test_graphml_and_dot(tmp_path: Path) -> None:
    view = residual().graph("lowered")
    view.to_graphml(tmp_path / "graph.graphml")
    again = networkx.read_graphml(tmp_path / "graph.graphml")
    assert set(again) == set(view.to_networkx())
    assert ElementTree.parse(tmp_path / "graph.graphml").getroot().tag.endswith("graphml")
    dot = view.to_dot()
    assert dot.startswith("digraph")
    assert "penwidth=3" in dot
    assert "style=dashed" in dot


def test_without_pydot_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    view = residual().graph()
    monkeypatch.setitem(__import__("sys").modules, "pydot", None)
    with pytest.raises(dsgc.MissingPackageError, match="pip install"):
        view.to_dot()


def test_mask_groups() -> None:
    sparse = residual()
    semantic = mask_groups(sparse.graph("semantic"))
    assert set(semantic["first_mask"]) == {"first", "norm", "relu"}
    assert set(semantic["second_mask"]) == {"second", "norm2"}
    lowered = mask_groups(sparse.graph("lowered"))
    assert set(lowered["first_mask_index"]) >= {"first", "norm_value"}


def test_where_sparsity_is_lost() -> None:
    sparse = residual()
    lost = {one.node: one for one in lost_sparsity(sparse.graph("semantic"))}
    assert lost["add"].before == 0.25
    assert lost["add"].after == 1.0
    assert "no selection goes through" in lost["add"].what
    assert lost["grouped"].what == "a dense layer reads it"
    packed = {one.node: one.what for one in lost_sparsity(sparse.graph("lowered"))}
    assert any("unpacked" in what for what in packed.values())


def test_a_pooling_brings_selections_together() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(32, 32, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4, 10),
    )  # fmt: skip
    sparse = dsgc.compile(model, config=config("0", "3"), example_inputs=X)
    (pool,) = (one for one in lost_sparsity(sparse.graph("lowered")) if "pooling" in one.what)
    assert pool.before == 0.25
    assert pool.after == pytest.approx(1 - 0.75**4)


def test_liveness() -> None:
    view = residual().graph("lowered")
    memory = liveness(view)
    lives = {one.node: one for one in memory.lifetimes}
    names = [node.name for node in view.graph_module.graph.nodes]
    assert lives["first"].bytes == 4 * 32 * 8 * 8 * 4 // 4
    assert lives["first"].first == names.index("first")
    assert memory.peak >= max(one.bytes for one in memory.lifetimes)
    assert memory.at in names
    dense = liveness(residual().graph("semantic"))
    assert memory.peak < dense.peak


def test_critical_path() -> None:
    sparse = residual()
    view = sparse.graph("lowered")
    path = critical_path(view, sparse.report(X, rounds=1).seconds_of)
    graph = view.to_networkx()
    names = [name for name, _ in path]
    assert all(graph.has_edge(a, b) for a, b in pairwise(names))
    assert names[0] == "x"
    only = critical_path(view, {"first": 1.0, "grouped": 2.0})
    assert sum(seconds for _, seconds in only) == 3.0
