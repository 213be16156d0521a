"""`dsgc demo`, with settings so small that it takes seconds."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from dsgc.cli import app
from dsgc.demo import DemoOptions, DemoResult, DigitsNet, Side, load_digits

TINY = ["--epochs", "1", "--batch-size", "256", "--rounds", "1"]


def test_demo_prints_json() -> None:
    result = CliRunner().invoke(app, ["demo", "--json", "--backend", "reference", *TINY])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["options"]["sparsity"] == 0.8
    assert figures["backend"] == "reference"
    for side in ("dense", "sparse"):
        assert 0 <= figures[side]["accuracy"] <= 1
        assert figures[side]["step_seconds"] > 0
        assert figures[side]["kept_bytes"] > 0
        assert figures[side]["multiply_adds"] > 0
    assert figures["dense"]["sparsity"] is None
    assert figures["dense"]["search"] == 0


def test_demo_prints_both_sides() -> None:
    result = CliRunner().invoke(app, ["demo", *TINY])
    assert result.exit_code == 0, result.output
    for text in ("dense", "sparse", "accuracy", "kept for backward", "multiply-adds"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.5"], "sparsity"),
        (["--batch-size", "100000"], "batch size"),
    ],
)
def test_demo_says_what_is_impossible(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 1
    assert message in result.stderr


def test_demo_says_when_scikit_learn_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "dsgc[demo]" in result.stderr


def test_help_names_the_options() -> None:
    result = CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0
    for option in ("sparsity", "epochs", "batch-size", "threads", "seed", "backend", "json"):
        assert option in result.stdout


def result_with(dense_seconds: float, sparse_seconds: float, backend: str) -> DemoResult:
    """A result with made-up figures."""
    left = Side(0.99, dense_seconds, (0.0, 0.0), 4_000, 100, 0, None)
    right = Side(0.98, sparse_seconds, (0.0, 0.0), 1_000, 20, 5, 0.8)
    return DemoResult(DemoOptions(), 1, backend, left, right)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (result_with(0.2, 0.1, "tvm"), "2.00x faster"),
        (result_with(0.1, 0.2, "tvm"), "does not pay"),
        (result_with(0.1, 0.2, "reference"), "never faster"),
    ],
)
def test_the_table_says_which_is_faster(result: DemoResult, text: str) -> None:
    assert text in str(result.table().caption)


def test_digits_are_split_by_seed() -> None:
    digits, again, other = load_digits(0), load_digits(0), load_digits(1)
    assert digits.train_images.shape == (1437, 1, 16, 16)
    assert digits.test_images.shape == (360, 1, 16, 16)
    assert torch.equal(digits.test_labels, again.test_labels)
    assert not torch.equal(digits.test_labels, other.test_labels)
    assert abs(float(digits.train_images.mean())) < 1e-3


def test_digits_network_takes_any_image_size() -> None:
    model = DigitsNet(0.25).eval()
    assert model(torch.randn(2, 1, 8, 8)).shape == model(torch.randn(2, 1, 16, 16)).shape == (2, 10)
