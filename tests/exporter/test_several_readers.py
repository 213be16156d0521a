"""Dense values with several readers: what one of them applies in place, others must not see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
import dsgc_runtime


class Net(nn.Module):
    """A convolution, norms and a sparse convolution, put together by `form`."""

    def __init__(self, form: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.form = form
        self.c1 = nn.Conv2d(3, 32, 3, padding=1)
        self.c2 = nn.Conv2d(32, 32, 3, padding=1)
        self.bn, self.bn2 = nn.BatchNorm2d(32), nn.BatchNorm2d(32)
        for norm in (self.bn, self.bn2):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Any:
        return self.form(self, x)


def before_norm(net: Net, x: Tensor) -> Any:
    r = F.relu(net.c1(x))
    return r + net.c2(F.relu(net.bn(r)))


def behind_norm(net: Net, x: Tensor) -> Any:
    y = net.bn(F.relu(net.c1(x)))
    return y + net.c2(F.relu(y))


def two_norms(net: Net, x: Tensor) -> Any:
    r = F.relu(net.c1(x))
    return net.c2(net.bn(r)) + net.bn2(r)


def without_relu(net: Net, x: Tensor) -> Any:
    y = net.bn(net.c1(x))
    return net.c2(F.relu(y)) + y


def norm_of_activated(net: Net, x: Tensor) -> Any:
    r = F.relu(net.bn(net.c1(x)))
    return net.c2(net.bn2(r)) + r


def norm_twice(net: Net, x: Tensor) -> Any:
    r = F.relu(net.c1(x))
    return net.c2(F.relu(net.bn(r))) + net.bn(r)


FORMS = [before_norm, behind_norm, two_norms, without_relu, norm_of_activated, norm_twice]


@pytest.mark.parametrize("first", [None, 0.5], ids=["dense", "sparse"])
@pytest.mark.parametrize("form", FORMS)
def test_artifacts_agree(
    form: Callable[[Net, Tensor], Any], first: float | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = dsgc.SparsityConfig(rules={"c1": first, "c2": 0.5})
    sparse, x = dsgc.compile(Net(form).eval(), config=config), torch.randn(2, 3, 9, 9)
    found = dsgc_runtime.load(dsgc.export(sparse, tmp_path / "m.dsgc", x), threads=1)(x)
    with torch.no_grad():
        wanted = sparse(x).numpy()
    assert isinstance(found, np.ndarray)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
