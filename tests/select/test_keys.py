"""Every call of a layer has a selector of its own, whatever the layers are called."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import dsgc
from dsgc.passes.insert_selection import selector_target


@pytest.mark.parametrize(
    ("site", "key"),
    [
        ("conv1", "conv1"),
        ("features.3", "features__3"),
        ("features.3#2", "features__3__call2"),
        ("block._conv", "block___conv"),
        ("layer_1.conv_2", "layer_1__conv_2"),
    ],
)
def test_keys_of_ordinary_names_stay_what_checkpoints_have(site: str, key: str) -> None:
    assert selector_target(site) == f"dsgc_selectors.{key}"


def test_no_two_sites_share_a_key() -> None:
    parts = ["a", "_", "__", ".", "#2", "call2", "__call2", "_u"]
    sites = {"".join(chosen) for n in (1, 2, 3, 4) for chosen in product(parts, repeat=n)}
    sites = {site for site in sites if site.strip(".") == site and ".." not in site}
    assert len({selector_target(site) for site in sites}) == len(sites)


class Clash(nn.Module):
    """Layers `a.b` and `a__b`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential()
        self.a.add_module("b", nn.Conv2d(16, 64, 3, padding=1))
        self.a__b = nn.Conv2d(64, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a__b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_layers_with_similar_names_have_their_own_selectors(backend: str) -> None:
    config = dsgc.SparsityConfig(0.5, rules={"a.b": 0.5, "a__b": 0.5}, block=8)
    sparse = dsgc.compile(Clash(), config=config, backend=backend)
    x = torch.randn(4, 16, 9, 9)
    assert sparse(x).shape == (4, 32, 9, 9)
    found = sparse.selections(x)
    assert {name: mask.shape[1] for name, mask in found.items()} == {"a.b": 8, "a__b": 4}


def test_a_selector_of_another_layer_is_never_used() -> None:
    config = dsgc.SparsityConfig(0.5, rules={"a.b": 0.5, "a__b": 0.5}, block=8)
    sparse = dsgc.compile(Clash(), config=config, backend="reference")
    sparse(torch.randn(4, 16, 9, 9))
    bank, decisions = sparse._bank, sparse.decisions
    bank._modules["a__b"], bank._modules["____a_u_ub"] = bank.selectors[1], bank.selectors[0]
    with pytest.raises(dsgc.VerificationError, match="was made for layer 'a__b'"):
        bank.obtain(decisions["a.b"], sparse.get_submodule("a.b"))
