"""`dsgc demo`, with settings so small that it takes seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

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
    assert result.exit_code == (2 if message == "sparsity" else 1)
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


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"dsgc {version('dsgc')}\n"


@pytest.mark.parametrize("command", ["explain", "inspect", "bench"])
@pytest.mark.parametrize("width", ["nan", "inf", "-1", "0"])
def test_impossible_widths_are_refused(command: str, width: str) -> None:
    result = CliRunner().invoke(app, [command, "vgg8", "--width", width])
    assert result.exit_code == 2
    assert "must be positive and finite" in result.stderr


@pytest.mark.parametrize("columns", [60, 90, 200])
@pytest.mark.parametrize("command", [command.callback for command in app.registered_commands])
def test_paragraphs_of_help_fill_the_line(command: Callable[..., object], columns: int) -> None:
    """Wherever a line ends, the next word would not have fitted."""
    name = command.__name__
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    shown = CliRunner().invoke(app, [name, "--help"], env=environment).stdout
    lines = [line.strip() for line in shown.partition("Usage")[2].splitlines()[1:]]
    text = lines[: next(i for i, line in enumerate(lines) if line.startswith("╭"))]
    assert command.__doc__ is not None
    assert " ".join(text).split() == command.__doc__.split()
    for line, after in pairwise(text):
        if line and after:
            assert len(line) + 1 + len(after.split()[0]) > columns - 2


BROKEN = """
import sys

import torch


def leaves():
    sys.exit(3)


def needs(something):
    return something


def nothing():
    return torch.nn.Flatten()


number = 3
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:x", "No module named 'nowhere'"),
        (":x", "Empty module name"),
        ("broken:", "AttributeError"),
        ("broken:absent", "no attribute 'absent'"),
        ("broken:number", "'int' object is not callable"),
        ("broken:needs", "missing 1 required positional argument"),
        ("broken:leaves", "failed with SystemExit"),
        ("broken:nothing", "without parameters"),
    ],
)
def test_what_is_no_model_is_named(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(
        app, ["bench", name, "--input-shape", "1,2,2", "--classes", "4"], env={"COLUMNS": "300"}
    )
    assert result.exit_code == 2, result.output
    assert said in result.stderr
