"""sparse.report(): what was measured, and that measuring leaves no trace."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from torch import nn

import dsgc
from dsgc.inspect.load import load_of
from dsgc.measure import kept_for_backward
from tests.inspect.networks import LooksAtData, Residual, X, config, residual


def test_rows_are_measured() -> None:
    sparse = residual().train()
    found = sparse.report(X, rounds=2)
    assert (found.mode, found.rounds, found.backend) == ("training", 2, sparse.backend)
    assert [layer.name for layer in found.layers] == list(sparse.decisions)
    for layer in found.layers:
        assert layer.forward > 0
        assert layer.dense_forward > 0
        assert layer.dense_backward > 0
        assert (layer.load is not None) == layer.sparse
        assert (layer.search > 0) == layer.sparse
        assert layer.search < layer.forward or not layer.sparse
        if layer.sparse:
            assert layer.sparsity == pytest.approx(1 - 1 / 4 if layer.block == 8 else 0.75, abs=0.1)
    spent = sum(layer.forward + layer.backward for layer in found.layers)
    assert spent < found.seconds
    assert set(found.seconds_of) <= {node.name for node in sparse.lowered_graph.graph.nodes}


def test_bytes_kept_are_those_of_the_whole_step() -> None:
    sparse = residual().train()
    found = sparse.report(X, rounds=1)
    every = (found.before, *found.layers)
    kept = kept_for_backward(lambda: sparse(X).sum(), sparse)
    dense = sparse.to_dense().train()
    whole = kept_for_backward(lambda: dense(X).sum(), dense)
    assert sum(layer.kept or 0 for layer in every) == pytest.approx(kept, rel=0.02)
    assert sum(layer.kept_dense or 0 for layer in every) == pytest.approx(whole, rel=0.02)


def test_nothing_changes() -> None:
    sparse = residual().train()
    sparse(X).sum().backward()
    state = {name: value.clone() for name, value in sparse.state_dict().items()}
    grads = {n: p.grad.clone() for n, p in sparse.named_parameters() if p.grad is not None}
    generator = torch.get_rng_state()
    sparse.report(X, rounds=1)
    assert all(torch.equal(state[name], value) for name, value in sparse.state_dict().items())
    for name, parameter in sparse.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, grads[name])
    assert torch.equal(generator, torch.get_rng_state())
    assert sparse.training
    assert "features" not in dir(sparse)


def test_inference_has_no_backward() -> None:
    found = residual().report(X, rounds=1)
    assert found.mode == "inference"
    assert all(layer.backward == layer.dense_backward == 0.0 for layer in found.layers)
    assert all(layer.kept is None for layer in found.layers)
    assert "backward ms" not in str(found)


def test_the_last_call_is_taken_while_its_inputs_exist() -> None:
    sparse = residual()
    with pytest.raises(dsgc.InputError, match="pass a batch"):
        sparse.report()
    x = X.clone()
    sparse(x)
    assert sparse.report(rounds=1).layers
    del x
    gc.collect()
    with pytest.raises(dsgc.InputError, match="pass a batch"):
        sparse.report(rounds=1)


def test_parts_of_a_model_are_measured() -> None:
    sparse = dsgc.compile(LooksAtData().train(), config=config("body.0", "tail.0"))
    sparse(X)
    found = sparse.report(X, rounds=1)
    times = {layer.name: layer for layer in found.layers}
    assert times["body.0"].load is not None
    assert times["tail.0"].backward > 0
    assert times["head"].dense_forward > 0


def test_dead_blocks_are_named() -> None:
    model = Residual().eval()
    with torch.no_grad():
        model.third.weight[:8] = 0.0
        model.third.bias.data[:8] = -100.0  # type: ignore[union-attr]
    sparse = dsgc.compile(model, config=config("third"), example_inputs=X)
    found = sparse.report(X, rounds=1)
    (layer,) = (one for one in found.layers if one.sparse)
    assert layer.load is not None
    assert 0 in layer.load.dead
    assert "third: block" in str(found)


@pytest.mark.parametrize("dead", [1, 2, 9])
def test_loads(dead: int) -> None:
    mask = torch.zeros(2, 16, 3, 3, dtype=torch.bool)
    mask[:, dead:, 0] = True
    load = load_of(mask)
    assert load.sparsity == pytest.approx(1 - (16 - dead) / 16 / 3)
    assert load.busiest == pytest.approx(16 / (16 - dead))
    assert load.dead == tuple(range(dead))
    words = load.dead_in_words()
    assert words.endswith("of 16")
    assert ("more" in words) == (dead > 8)


def test_forms() -> None:
    found = residual().train().report(X, rounds=1)
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["name"] == "first"
    assert "load_shares" in found.to_pandas().columns
    assert "| ---: |" in found.markdown()
    assert "total" in str(found)
    assert found.table().named_rows()[1]["layer"] == "first"


def test_mistakes() -> None:
    sparse = residual()
    with pytest.raises(dsgc.InputError, match="rounds=0"):
        sparse.report(X, rounds=0)
    with pytest.raises(dsgc.InputError):
        sparse.report("no tensor")
    plain = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1))
    with pytest.warns(UserWarning, match="runs dense"):
        dense = dsgc.compile(plain, 0.8, example_inputs=X)
    with pytest.raises(dsgc.NothingToSparsifyError, match="no layer is sparse"):
        dense.report(X)


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    residual().report(X, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_growing_sparsity_says_that_the_module_still_runs_dense() -> None:
    sparse = residual(schedule="linear", warmup_steps=100).train()
    sparse(X)
    assert "still runs dense" in str(sparse.report(X, rounds=1))
    assert "still runs dense" not in str(residual().report(X, rounds=1))
