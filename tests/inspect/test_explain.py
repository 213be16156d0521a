"""dsgc.explain: decisions, costs and bytes before anything is compiled."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import dsgc
from dsgc import zoo
from dsgc.measure import kept_for_backward
from tests.inspect.networks import LooksAtData, Residual, X, config

SPARSE = ("first", "second", "third")


def explained(model: nn.Module | None = None, **settings: object) -> dsgc.Explanation:
    return dsgc.explain(
        Residual() if model is None else model,
        config=config(*SPARSE, **settings),
        example_inputs=X,
    )


def test_rows_say_what_compiling_does() -> None:
    found = explained()
    sparse = dsgc.compile(Residual(), config=config(*SPARSE), example_inputs=X)
    assert [layer.name for layer in found.layers] == list(sparse.decisions)
    for layer in found.layers:
        decision = sparse.decisions[layer.name]
        assert (layer.sparse, layer.reason) == (decision.sparse, decision.reason)
        assert (layer.dense, layer.where) == (decision.macs, decision.where)
        if layer.sparse:
            assert decision.settings is not None
            assert layer.block == decision.settings.block
            assert 0 < layer.winners < layer.blocks
            assert layer.done < layer.dense
            assert layer.search > 0
    shapes = {layer.name: layer.shape for layer in found.layers}
    assert shapes["first"] == (32, 8, 8)
    assert shapes["third"] == (48, 4, 4)
    assert shapes["head"] == (10,)
    assert all("networks.py:" in layer.where for layer in found.layers)


def test_multiply_adds_follow_from_both_selections() -> None:
    first, second = explained().layers[:2]
    assert first.dense == 8 * 8 * 9 * 16 * 32
    assert first.done == first.dense * first.winners // first.blocks
    density = second.winners / second.blocks
    assert second.done == pytest.approx(second.dense * 0.25 * density, rel=1e-6)


@pytest.mark.parametrize("name", ["vgg8", "dsg_resnet8", "mlp", "wrn16_4"])
def test_expected_bytes_are_those_that_are_kept(name: str) -> None:
    torch.manual_seed(0)
    network = zoo.NETWORKS[name]
    model = zoo.build(name, width=0.5)
    x = torch.randn(16, network.in_channels, network.image_size, network.image_size)
    names = [layer for layer, module in model.named_modules() if _may_be_sparse(module)]
    rules = tuple(dsgc.Rule(layer, sparsity=0.8) for layer in names)
    made = dsgc.SparsityConfig(rules=rules)
    found = dsgc.explain(model, config=made, example_inputs=x)
    sparse = dsgc.compile(model, config=made, example_inputs=x)
    kept = kept_for_backward(lambda: sparse(x).sum(), sparse)
    dense = kept_for_backward(lambda: model(x).sum(), model)
    expected = [
        before + sum(sizes) for before, sizes in zip(found.before, _kept(found), strict=True)
    ]
    assert expected[0] == pytest.approx(dense, rel=0.02)
    # What pooling windows bring together is a guess: selections of neighbours are alike.
    assert expected[1] == pytest.approx(kept, rel=0.12)


def _may_be_sparse(module: nn.Module) -> bool:
    """Hidden layers, the 3x3 convolutions among them: where rules make a network sparse."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels > 16 and module.kernel_size == (3, 3)
    return isinstance(module, nn.Linear) and module.out_features > 1024


def _kept(found: dsgc.Explanation) -> tuple[list[int], list[int]]:
    return [x.kept_dense or 0 for x in found.layers], [x.kept or 0 for x in found.layers]


def test_a_model_larger_than_memory_is_explained() -> None:
    with torch.device("meta"):
        model = nn.Sequential(
            *(nn.Sequential(nn.Linear(65536, 65536), nn.ReLU()) for _ in range(40)),
            nn.Linear(65536, 10),
        )  # 688 GB of weights
    found = dsgc.explain(model, 0.9, example_inputs=torch.empty(8192, 65536))
    assert sum(layer.sparse for layer in found.layers) == 40
    assert sum(layer.dense for layer in found.layers) > 40 * 65536**2


def test_nothing_of_the_model_changes() -> None:
    model = Residual().train()
    model.first.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    explained(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(generator, torch.get_rng_state())
    assert not hasattr(model, "dsgc_selectors")


def test_code_that_looks_at_data_is_explained_by_running_it() -> None:
    found = dsgc.explain(LooksAtData(), config=config("body.0", "tail.0"), example_inputs=X)
    assert [layer.name for layer in found.layers if layer.sparse] == ["body.0", "tail.0"]
    assert all(layer.kept is None for layer in found.layers)
    assert any("runs by its own code" in line for line in found.advice)
    assert "-" in found.table().named_rows()[0]["kept"]


def test_a_model_where_nothing_pays_says_what_would() -> None:
    model = zoo.build("resnet18")
    found = dsgc.explain(model, 0.8, example_inputs=torch.randn(1, 3, 64, 64))
    assert not any(layer.sparse for layer in found.layers)
    assert found.layers[5].kept == found.layers[5].kept_dense
    assert any("would pay" in line for line in found.advice)
    assert all(layer.reason in str(found).replace("\n", " ") for layer in found.layers[:1])


def test_a_larger_batch_that_is_recommended_does_pay() -> None:
    model = zoo.build("dsg_resnet8")
    small = dsgc.explain(model, 0.8, example_inputs=torch.randn(2, 3, 32, 32))
    (said,) = (line for line in small.advice if "at a batch of 8" in line)
    large = dsgc.explain(model, 0.8, example_inputs=torch.randn(8, 3, 32, 32))
    names = said.partition(" would")[0].split(" and ")[0].split(", ")
    assert set(names) <= {layer.name for layer in large.layers if layer.sparse}


def test_schedules_count_at_their_end() -> None:
    growing = explained(schedule="cubic", warmup_steps=1000)
    assert [x.winners for x in growing.layers] == [x.winners for x in explained().layers]


def test_forms() -> None:
    found = explained()
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["name"] == "first"
    frame = found.to_pandas()
    assert list(frame["name"]) == [layer.name for layer in found.layers]
    markdown = found.markdown()
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert len(rows) == 2 + len(found.layers) + 1
    assert "grouped" in markdown
    narrow = found.table().text(width=60)
    assert "left out for want of" in narrow
    assert max(map(len, narrow.splitlines())) <= 60


def test_without_pandas_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(dsgc.MissingPackageError, match="pip install pandas"):
        explained().to_pandas()


def test_mistakes() -> None:
    with pytest.raises(dsgc.InputError, match="must hold a tensor"):
        dsgc.explain(Residual(), 0.8, example_inputs=())
    bad = dsgc.SparsityConfig(rules={"nowhere": 0.5})
    with pytest.raises(dsgc.UnknownLayerError):
        dsgc.explain(Residual(), config=bad, example_inputs=X)
    with pytest.raises(dsgc.InputError, match="rejects inputs"):
        dsgc.explain(Residual(), 0.8, example_inputs=torch.randn(2, 5, 8, 8))
    with pytest.raises(dsgc.ConfigError, match="must be a torch"):
        dsgc.explain("no model", 0.8, example_inputs=X)  # type: ignore[arg-type]
    with pytest.raises(dsgc.NothingToSparsifyError):
        dsgc.explain(nn.Sequential(nn.ReLU()), 0.8, example_inputs=X)
