"""What values are, when the user's code asks, and when torch's own code in C++ does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from tests.every_block import Net, agree, pair

X = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
is_a = isinstance


class AsksResult(Net):
    def forward(self, x: Any) -> Any:
        out = super().forward(x)
        return out if isinstance(out, Tensor) else out[0]


class AsksInput(Net):
    def forward(self, x: Any) -> Any:
        if torch.is_tensor(x) and not hasattr(x, "decompose") and not isinstance(x, (list, dict)):
            x = x / 4
        return super().forward(x)


class AsksRecurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Any) -> Any:
        out = self.recurrent(F.relu(self.normed(x)).mean(3))
        if isinstance(out, tuple):
            out = out[0]
        return out.sum((1, 2))


class AsksExactly(Net):
    """The graph would index beyond the end where the code does not."""

    def forward(self, x: Any) -> Any:
        out = super().forward(x)
        return out if type(out) is Tensor else out[20]


class AsksByType(Net):
    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        return self.answer(x) * (2 if type(x) is torch.Tensor else 3)


class AsksAClass(Net):
    def scale_of(self, x: Any) -> int:
        return 2 if issubclass(type(x), Tensor) else 3

    def forward(self, x: Any) -> Any:
        return self.answer(self.normed(x)) * self.scale_of(x)


class AsksForLists(Net):
    def forward(self, x: Any) -> Any:
        x = x if type(x) in (list, tuple) else [x]
        return super().forward(x[0])


class AsksByAnotherName(Net):
    def forward(self, x: Any) -> Any:
        y = self.normed(x)
        many = all(
            is_a(one, Tensor)
            for one in (x, y)
        )  # fmt: skip
        return self.answer(y) if many and y.__class__ is Tensor else y


class AsksForMany(Net):
    def forward(self, x: Any) -> Any:
        y = self.normed(x)
        both = all(map(isinstance, [x, y], [Tensor, Tensor])) and partial(isinstance, y)(Tensor)
        return self.answer(y / np.sqrt(32.0)) * (2 if both else 3)


class Scales(Net):
    def forward(self, x: Any) -> Any:
        return self.answer(F.leaky_relu(self.normed(x), np.float64(0.2)) / np.sqrt(32.0))


class AsksForGradients(Net):
    def forward(self, x: Any) -> Any:
        y = self.normed(x)
        return self.answer(y) * (2 if y.grad_fn is not None and x.grad is None else 3)


class Matches(Net):
    def forward(self, x: Any) -> Any:
        match x:
            case Tensor():
                return super().forward(x)
        return None


CASES: list[tuple[type[Net], bool]] = [
    (AsksResult, True), (AsksInput, True), (AsksRecurrent, False), (AsksExactly, False),
    (AsksByType, False), (AsksAClass, False), (AsksForLists, True), (Matches, True),
    (AsksForGradients, False), (AsksForMany, False), (Scales, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "traced"), CASES)
def test_values_say_what_they_are(kind: type[Net], traced: bool) -> None:
    assert ("" not in agree(kind(), X).untraced) is traced


def test_whoever_cannot_be_answered_runs_by_its_own_code() -> None:
    agree(AsksByAnotherName(), X)


# Functions whose signatures torch tries one by one: to take a stand-in's memory ended the process.
CALLS: dict[str, Callable[[Any], Any]] = {
    "pow": lambda x: torch.pow(x, 2),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "remainder": lambda x: torch.remainder(x, 2.0),
    "float_power": lambda x: torch.float_power(x, 2).float(),
    "xlogy": lambda x: torch.xlogy(x, 2.0),
    "clamp": lambda x: torch.clamp(x, x.mean(), torch.tensor(1.0)),
    "tensor": lambda x: x + torch.as_tensor(x.detach().mean()),
    "full": lambda x: x + torch.full_like(x, x.detach().mean()),
    "sizes": lambda x: x + torch.zeros(x.shape[0], 1, x.size(2), 1),
}


class Calls(Net):
    def __init__(self, call: Callable[[Any], Any], first: bool) -> None:
        super().__init__()
        self.call, self.early = call, first

    def forward(self, x: Any) -> Any:
        x = self.normed(self.call(x) if self.early else x)
        return self.answer(x if self.early else self.call(x))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("first", [False, True])
def test_functions_that_look_at_their_arguments_in_c(name: str, first: bool) -> None:
    sparse = agree(Calls(CALLS[name], first), X)
    if name in ("pow", "where", "remainder", "xlogy"):
        assert sparse.untraced == {}


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Holds(Net):
    """Has what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.script, self.one_by_one = scripted, (one for one in "abc")

    def forward(self, x: Any) -> Any:
        return self.answer(self.script(self.normed(x)))


def test_attributes_that_cannot_be_copied_are_shared() -> None:
    model = Holds()
    sparse = dsgc.compile(model, config=dsgc.SparsityConfig(1e-4, rules={"re:.*": 1e-4}))
    torch.testing.assert_close(sparse(X), model(X), rtol=1e-4, atol=1e-5)
    assert next(sparse.one_by_one) == "a"
    assert next(model.one_by_one) == "b"


class Fills(Net):
    """Writes computed values into a tensor that it has made."""

    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        means = torch.zeros(3)
        for i in range(3):
            means[i] = x[:, i].mean()
        return self.answer(x) * means.sum()


def test_values_that_are_filled_in() -> None:
    assert "" in agree(Fills(), X).untraced
    dense, sparse = pair(Fills())
    for _ in range(3):  # each step with a graph of its own
        sparse(X).sum().backward()
        dense(X).sum().backward()
    expected, found = (one.get_parameter("first.weight").grad for one in (dense, sparse))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
