"""Operations that change a tensor in place are seen by whoever has the tensor, as in the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.every_block import Net, agree, pair

X = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))


class PartScaled(Net):
    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        x[:, :8].mul_(2.0)
        return self.answer(x)


class ViewBefore(Net):
    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        rows = x.flatten(1)
        x.relu_()
        return self.answer(x) + rows.mean()


class Residual(Net):
    def forward(self, x: Any) -> Any:
        x = F.relu(self.normed(x))
        y = self.second(x)
        y += x
        return self.head(F.relu(y, inplace=True).mean((2, 3)))


class AnotherName(Net):
    """`y` is `x`: torch.fx alone would record `y = y + 1` here."""

    def forward(self, x: Any) -> Any:
        x = y = self.normed(x)
        y += 1.0
        y *= 2.0
        return self.answer(x)


class PaddedName(Net):
    def forward(self, x: Any) -> Any:
        x = y = F.pad(self.normed(x), (1, 1))
        y -= 1.0
        y /= 2.0
        return self.answer(x)


class Sizes(Net):
    """Numbers are not changed in place."""

    def forward(self, x: Any) -> Any:
        n, k = x.size(0), x.shape[-1]
        rows, half = n, k
        rows *= 2
        half //= 2
        x = self.normed(x)
        return self.answer(x).view(n, -1).sum(0) + x.reshape(rows, -1, half).mean() * k


class Halves(Net):
    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        one, other = x.narrow(1, 0, 16), x[:, 16:]
        one += other
        return self.answer(x)


class Handed(Net):
    """Flattening hands on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten(2)

    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        rows = self.flat(x)
        rows += 1.0
        return self.answer(x)


class Ravelled(Net):
    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        x.ravel().add_(1.0)
        return self.answer(x)


class Marked(Net):
    """What a value is given besides its numbers is not in a graph."""

    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        x.scale = 3.0
        return self.answer(x) * x.scale


CASES: list[tuple[type[Net], bool]] = [
    (PartScaled, False), (ViewBefore, False), (Residual, True), (AnotherName, True),
    (PaddedName, True), (Sizes, True), (Halves, False), (Handed, False), (Marked, False),
    (Ravelled, False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "traced"), CASES)
def test_in_place_operations_are_seen_through_every_view(kind: type[Net], traced: bool) -> None:
    assert ("" not in agree(kind(), X).untraced) is traced


# Arguments


class Shifts(Net):
    def forward(self, x: Any) -> Any:
        x += 1.0
        return super().forward(x)


class Clamps(Net):
    def forward(self, x: Any) -> Any:
        return super().forward(F.relu(x, inplace=True))


class Drops(Net):
    """In eval mode the dropout hands on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        return super().forward(self.act(self.drop(x)))


class Counts(Net):
    """Cannot be traced, for another reason."""

    def forward(self, x: Any) -> Any:
        if float(x.detach().sum()) > 1e9:
            return x
        x.add_(1.0)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Shifts, Clamps, Drops, Counts])
@pytest.mark.parametrize("training", [False, True])
def test_the_caller_sees_what_became_of_an_argument(kind: type[Net], training: bool) -> None:
    dense, sparse = pair(kind().train(training))
    given, passed = X.clone(), X.clone()
    for _ in range(2):
        torch.manual_seed(0)
        expected = dense(given)
        torch.manual_seed(0)
        torch.testing.assert_close(sparse(passed), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(passed, given)
    if kind is not Counts:
        assert "changes an argument" in sparse.untraced[""]


class Around(Net):
    """Parts of it change what they are given, and it looks at that afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(32, 32, 1), nn.Sigmoid())

    def forward(self, x: Any) -> Any:
        if float(x.detach().sum()) > 1e9:
            return x
        x = self.normed(x)
        return self.answer(x + self.part(x))


def test_a_part_changes_what_it_is_given() -> None:
    sparse = agree(Around(), X)
    assert "changes an argument" in sparse.untraced["part"]
    assert sparse.decisions["part.1"].sparse


class Splits(Net):
    """Writes to one of several views, which has no gradient; in eval mode that is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x: Any) -> Any:
        x = self.normed(x)
        half = self.drop(x.chunk(2, 1)[1])
        half.relu_()
        return self.answer(x) + half.mean()


def test_code_that_fails_with_gradients_in_eval_mode_alone() -> None:
    model = Splits()
    dense, sparse = copy.deepcopy(model), pair(model)[1]
    for training in (True, False):
        with torch.set_grad_enabled(training):
            torch.manual_seed(0)
            expected: Tensor = dense.train(training)(X)
            torch.manual_seed(0)
            found = sparse.train(training)(X)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
