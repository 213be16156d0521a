"""dsgc.compare: how far models are apart, and which operator is wrong."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import fx, nn

import dsgc
from dsgc.inspect.compare import compare
from dsgc.program import Program
from tests.inspect.networks import LooksAtData, Residual, X, config, residual


def test_graphs_differ_by_rounding() -> None:
    found = compare(residual(), "semantic", X)
    assert found.first_below(100) is None
    assert found.worst.sqnr > 100
    names = [one.name for one in found.differences]
    assert names.index("first") < names.index("norm") < names.index("add") < names.index("head")
    values = {one.name: one for one in found.differences}
    assert values["first"].computed == pytest.approx(0.25)
    assert values["first"].operation == "masked_conv2d"


def test_a_wrong_operator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Program.exposed

    def spoilt(program: Program, namespace: str) -> fx.GraphModule:
        gm = right(program, namespace)
        (node,) = (n for n in gm.graph.nodes if n.name == "second")
        with gm.graph.inserting_after(node):
            wrong = gm.graph.call_function(torch.mul, (node, 1.01))
        node.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)
        gm.recompile()
        return gm

    monkeypatch.setattr(Program, "exposed", spoilt)
    found = compare(residual(), "semantic", X)
    first = found.first_below(60)
    assert first is not None
    assert (first.name, first.layer) == ("second", "second")
    assert first.sqnr == pytest.approx(40, abs=0.1)


def test_sparse_and_dense() -> None:
    model = Residual().eval()
    sparse = dsgc.compile(model, config=config("first", "third"), example_inputs=X)
    found = dsgc.compare(sparse, model, X)
    values = {one.name: one for one in found.differences}
    assert list(values) == list(sparse.decisions)
    with torch.no_grad():
        right = model.first(X)
        mask = sparse.selections(X)["first"].repeat_interleave(8, 1)
        noise = float((right * ~mask).square().sum())
        expected = 10 * math.log10(float(right.square().sum()) / noise)
    assert values["first"].sqnr == pytest.approx(expected, abs=0.01)
    assert values["first"].max_error == pytest.approx(float((right * ~mask).abs().max()), rel=1e-5)
    assert 0 < values["head"].cosine <= 1
    assert not math.isinf(values["second"].sqnr)


def test_equal_models_do_not_differ() -> None:
    dense = Residual().eval()
    sparse = dsgc.compile(dense, config=config("first"), example_inputs=X)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    found = dsgc.compare(sparse, dense, X)
    assert all(one.max_error == 0 and one.cosine == 1.0 for one in found.differences)


def test_parts_are_compared() -> None:
    model = LooksAtData().eval()
    sparse = dsgc.compile(model, config=config("body.0", "tail.0"), example_inputs=X)
    assert len(dsgc.compare(sparse, model, X).differences) == 3
    assert dsgc.compare(sparse, "semantic", X).first_below(100) is None


def test_nothing_changes() -> None:
    sparse = residual().train()
    state = {name: value.clone() for name, value in sparse.state_dict().items()}
    dense = Residual().train()
    compare(sparse, dense, X)
    compare(sparse, "semantic", X)
    assert sparse.training
    assert dense.training
    assert not dense.first._forward_hooks
    assert all(torch.equal(state[name], value) for name, value in sparse.state_dict().items())


def test_forms_and_mistakes() -> None:
    found = compare(residual(), "semantic", X)
    assert "SQNR dB" in str(found)
    assert json.dumps(found.to_dict())
    assert len(found.to_pandas()) == len(found.differences)
    with pytest.raises(dsgc.InputError, match="no layer like those"):
        compare(residual(), nn.Sequential(nn.Conv2d(16, 4, 3)), X)
    with pytest.raises(dsgc.InputError, match='"semantic"'):
        compare(residual(), "lowered", X)  # type: ignore[arg-type]
    with pytest.raises(dsgc.InputError, match="a compiled model first"):
        compare(Residual(), "semantic", X)  # type: ignore[arg-type]


def test_another_compiled_model_is_refused() -> None:
    sparse = residual()
    with pytest.raises(dsgc.InputError, match="compiled as well"):
        compare(sparse, sparse, X)
    with pytest.raises(dsgc.InputError, match="cannot run on these inputs"):
        compare(sparse, nn.Linear(3, 4), X)


def test_the_graph_as_recorded_has_shapes() -> None:
    sparse = residual()
    sparse(X)
    for name in ("dense", "functionalize"):
        facts = sparse.graph(name).facts
        assert all(fact.shape for node, fact in facts.items() if node.op == "call_module")
