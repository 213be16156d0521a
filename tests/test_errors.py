"""Every error is of a type of its own, below one base."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import dsgc
from dsgc import errors, zoo


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n != "DsgcError"])
def test_errors_have_one_base_and_are_exported(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, dsgc.DsgcError)
    assert getattr(dsgc, name) is error
    again = pickle.loads(pickle.dumps(error("what, where, and what to do")))
    assert type(again) is error
    assert str(again) == "what, where, and what to do"


def test_wrong_values_are_value_errors() -> None:
    assert issubclass(dsgc.ConfigError, ValueError)
    assert issubclass(dsgc.InputError, ValueError)


def test_not_a_module() -> None:
    with pytest.raises(dsgc.ConfigError, match="model must be"):
        dsgc.compile(torch.relu)  # type: ignore[arg-type]


def test_unknown_backend() -> None:
    with pytest.raises(dsgc.ConfigError, match=r"'cuda'.*'auto'"):
        dsgc.compile(nn.Linear(2, 2), backend="cuda")


def test_sparsity_and_config_together() -> None:
    with pytest.raises(dsgc.ConfigError, match="not both"):
        dsgc.compile(nn.Linear(2, 2), 0.5, config=dsgc.SparsityConfig())


def test_model_without_layers() -> None:
    with pytest.raises(dsgc.NothingToSparsifyError, match="no Conv2d and no Linear"):
        dsgc.compile(nn.Sequential(nn.ReLU()))


def test_rule_for_a_layer_that_does_not_exist() -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 2))
    with pytest.raises(dsgc.UnknownLayerError, match="'conv1'"):
        dsgc.compile(model, config=dsgc.SparsityConfig(rules={"conv1": 0.5}))


def test_nothing_to_sparsify_gives_a_reason_for_every_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64 * 4, 10))
    with pytest.raises(dsgc.NothingToSparsifyError, match="final classifier") as caught:
        dsgc.compile(model)(torch.randn(2, 3, 4, 4))
    assert set(caught.value.reasons) == {"0", "2"}
    assert "3 channels" in caught.value.reasons["0"]


def test_a_model_too_small_to_gain_runs_dense_and_says_why() -> None:
    model, x = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 20)
    with pytest.warns(UserWarning, match=r"runs dense(.|\n)*0: it does not pay"):
        sparse = dsgc.compile(model, 0.8, example_inputs=x)
    torch.testing.assert_close(sparse(x), model(x))
    assert not any(decision.sparse for decision in sparse.decisions.values())


X = torch.randn(2, 16, 8, 8)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3))


@pytest.mark.parametrize("inputs", [None, 3, {"x": X}, X.numpy()])
def test_inputs_that_are_no_positional_ones(inputs: Any) -> None:
    sparse = dsgc.compile(small(), config=dsgc.SparsityConfig(rules={"re:.*": 0.5}))
    calls: list[Callable[[], object]] = [
        lambda: dsgc.explain(small(), example_inputs=inputs),
        lambda: dsgc.group_neurons(small(), example_inputs=inputs),
        lambda: dsgc.compare(sparse, small(), inputs),
    ]
    for call in calls:
        with pytest.raises(dsgc.ConfigError, match="must be a tensor or a tuple"):
            call()


def test_neurons_are_not_grouped_by_nothing() -> None:
    with pytest.raises(dsgc.InputError, match="real samples"):
        dsgc.group_neurons(small(), example_inputs=X[:0])
    with pytest.raises(dsgc.ConfigError, match="optimizer must be"):
        dsgc.group_neurons(small(), example_inputs=X, optimizer="sgd")  # type: ignore[arg-type]


def test_a_recorder_needs_a_compiled_model_and_names() -> None:
    sparse = dsgc.compile(small(), config=dsgc.SparsityConfig(rules={"re:.*": 0.5}))
    with pytest.raises(dsgc.InputError, match="compiled model"):
        dsgc.FiringRecorder(small())  # type: ignore[arg-type]
    with pytest.raises(dsgc.InputError, match="names"):
        dsgc.FiringRecorder(sparse, "ab")


def test_rules_of_bytes_and_rounds_that_are_no_numbers() -> None:
    with pytest.raises(dsgc.ConfigError, match="not of bytes"):
        dsgc.Rule(re.compile(b"a"), sparsity=0.5)  # type: ignore[arg-type]
    sparse = dsgc.compile(small(), config=dsgc.SparsityConfig(rules={"re:.*": 0.5}))
    for rounds in ("3", True, 0):
        with pytest.raises(dsgc.InputError, match="rounds"):
            sparse.report(X, rounds=rounds)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["classes", "in_channels", "image_size"])
@pytest.mark.parametrize("value", [0, -5, 2.5, True])
def test_networks_of_impossible_sizes(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a whole number"):
        zoo.build("vgg8", **{option: value})
