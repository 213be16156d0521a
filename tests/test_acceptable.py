"""Models and rules that cannot be compiled: the error says why and what to do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import dsgc

X = torch.randn(2, 16, 8, 8)


def two() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
    )


def sparse_of(model: nn.Module, *rules: str) -> dsgc.SparseModule:
    config = dsgc.SparsityConfig(0.5, rules=dict.fromkeys(rules, 0.5), block=8)
    return dsgc.compile(model, config=config, backend="reference")


def test_lazy_modules_are_called_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(32, 3), nn.ReLU(), nn.LazyConv2d(32, 3))
    with pytest.raises(dsgc.UnsupportedError, match=r"0\.weight of a lazy module.* call the model"):
        sparse_of(model, "0")
    model(X)
    sparse_of(model, "0")(X)


def test_weights_that_are_computed_by_old_means() -> None:
    pruned = two()
    prune.l1_unstructured(pruned[0], "weight", 0.3)  # type: ignore[no-untyped-call]
    normed = two()
    torch.nn.utils.weight_norm(normed[0])
    for model in (pruned, normed):
        with pytest.raises(dsgc.UnsupportedError, match=r"0\.weight was computed.*prune\.remove"):
            sparse_of(model, "2")
    prune.remove(pruned[0], "weight")  # type: ignore[no-untyped-call]
    sparse_of(pruned, "0", "2")(X)


def test_a_model_without_values_says_how_to_load_some() -> None:
    with torch.device("meta"):
        model = two()
    message = r"0\.weight is on the meta device.*to_empty"
    sparse = sparse_of(model, "0")
    with pytest.raises(dsgc.UnsupportedError, match=message):
        sparse(X)
    with pytest.raises(dsgc.UnsupportedError, match=message):
        dsgc.compile(model, 0.5, example_inputs=X)


@pytest.mark.parametrize("layer", [nn.Linear(64, 64), nn.Conv2d(64, 64, 3)])
def test_a_single_layer_is_named_as_the_reason(layer: nn.Module) -> None:
    with pytest.raises(dsgc.NothingToSparsifyError, match=r"the model itself is a .*Sequential"):
        dsgc.compile(layer, 0.5)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.last = self.shared = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Any:
        return self.shared(self.block(self.first(x)).relu())


def test_layers_inside_modules_of_torch_say_so() -> None:
    sparse = sparse_of(Tokens(), "first")
    sparse(torch.randn(2, 9, 32))
    for name in ("block.linear1", "block.self_attn.out_proj"):
        reason = sparse.decisions[name].reason
        assert reason == (
            "it is inside 'block', a TransformerEncoderLayer of torch, whose code dsgc does not "
            "enter"
        )
    with pytest.raises(dsgc.UnknownLayerError, match=r"'block\.linear1', which cannot be sparse"):
        sparse_of(Tokens(), "first", "block.linear1")
    with pytest.raises(dsgc.UnknownLayerError, match="inside the model itself, a Transformer"):
        sparse_of(Tokens().block, "linear1")
    sparse_of(Tokens(), "first", "re:.*li.*1|last")
    dsgc.compile(Tokens(), config=dsgc.SparsityConfig(rules={"block.linear1": None}))


def test_a_rule_for_the_second_name_of_a_layer_is_told_the_first() -> None:
    sparse_of(Tokens(), "last")
    with pytest.raises(dsgc.UnknownLayerError, match="'shared', another name of the layer 'last'"):
        sparse_of(Tokens(), "shared")


def test_what_torch_compile_wrapped() -> None:
    wrapped: Any = torch.compile(two())
    sparse = sparse_of(wrapped, "0")
    assert sparse(X).shape == (2, 32, 8, 8)
    inner = nn.Sequential(wrapped, nn.Conv2d(32, 32, 1))
    with pytest.raises(dsgc.UnknownLayerError, match=r"inside '0', which torch\.compile wr"):
        sparse_of(inner, "0._orig_mod.0")


def test_warnings_point_at_the_call() -> None:
    sparse = dsgc.compile(nn.Sequential(*two(), nn.Conv2d(32, 8, 1)), 0.5, backend="reference")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparse(X)
    assert [(w.filename, "runs dense" in str(w.message)) for w in caught] == [(__file__, True)]
