"""`dsgc bench` and `benchmarks`, on models so small that nothing is said about speed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dsgc
from benchmarks import artifact, layers
from benchmarks import run as benchmarks
from benchmarks.workloads import WORKLOADS
from dsgc import zoo
from dsgc.bench import peak, sides
from dsgc.bench.machine import describe_machine
from dsgc.bench.peak import Peak, machine_peak
from dsgc.bench.peak_memory import process_peak
from dsgc.bench.plot import draw_ratios
from dsgc.bench.report import verdicts
from dsgc.bench.results import Cell, Row
from dsgc.bench.runner import Options, measure
from dsgc.bench.search import search_seconds
from dsgc.bench.sides import COMPILED, DSGC, EAGER, ONNXRUNTIME, TITLES
from dsgc.bench.workload import Workload
from dsgc.cli import app
from dsgc.errors import ConfigError, DsgcError, KernelError
from dsgc.files import write_whole
from dsgc.multiply_adds import MultiplyAdds

SMALL = ["--batch", "4", "--width", "0.25", "--image-size", "16", "--threads", "1"]
QUICK = ["--rounds", "1", "--warmup", "0", "--no-memory"]
ONCE = Options(rounds=1, warmup=0, backend="tvm", compiled=False, memory=False)

MODULE = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))

def number():
    return 5
"""


class SparseAnyway(Workload):
    """A workload with sparse layers where the cost model would rightly keep all of them dense."""

    def config(self) -> dsgc.SparsityConfig:
        return dsgc.SparsityConfig(rules={"features.3": self.sparsity, "features.7": self.sparsity})


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes half a minute, and is not what is tested here."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module `mine`."""
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "300"})


# Rows


@pytest.mark.usefixtures("_no_compiler")
def test_a_bench_fills_every_column(tmp_path: Path) -> None:
    place, picture = tmp_path / "out.json", tmp_path / "out.png"
    files = ["--json", str(place), "--plot", str(picture)]
    sparsities = ["--sparsity", "0.5", "--sparsity", "0.8"]
    done = bench("vgg8", "--mode", "both", *sparsities, *SMALL, *QUICK, *files)
    assert done.exit_code == 0, done.output
    content = json.loads(place.read_text())
    assert content["machine"]["threads"] == [1]
    assert [row["name"] for row in content["rows"]] == [
        *("vgg8-16px-w0.25-b4-s50", "vgg8-16px-w0.25-b4-s80"),
        *("vgg8-16px-w0.25-b4-s50-infer", "vgg8-16px-w0.25-b4-s80-infer"),
    ]
    for row in content["rows"]:
        assert set(row) >= {"compiled", "onnxruntime", "search", "peak", "bound", "best_dense"}
        training = row["mode"] == "train"
        for side in (EAGER, COMPILED, DSGC):
            assert row[side]["step_seconds"] > 0
            assert row[side]["quartiles"] == [row[side]["step_seconds"]] * 2
            assert (row[side]["phases"] is not None) == training
        assert (row[EAGER]["kept_bytes"] is not None) == training
        assert training or row[ONNXRUNTIME]["note"] or row[ONNXRUNTIME]["step_seconds"] > 0
        assert row["ratio"] > 0
        assert row["bound"] > 0
        assert row["peak_fraction"]["eager"] > 0
        assert 0 < row["peak_fraction"]["dsgc"] <= row["peak_fraction"]["dsgc_with_search"]
        assert 0 <= row["search"]["of_dsgc_step"] < 1
    said = ("dense eager", "dense torch.compile", "of dsgc step", "with search", "made sparse")
    for text in said:
        assert text in done.stdout
    assert not_blank(picture)


def test_a_sparse_row_has_search_and_bound() -> None:
    (row,) = measure([SparseAnyway("vgg8", 4, width=0.5, image_size=16, threads=1)], ONCE)
    assert row.backend == "tvm"
    assert row.achieved_sparsity == pytest.approx(0.8, abs=0.1)
    assert row.search_seconds is not None
    assert row.search_seconds > 0
    share = row.search_share(DSGC)
    assert share is not None
    assert share > 0
    assert row.bound is not None
    assert row.bound > 1
    with_search, without = row.peak_fraction(DSGC, search=True), row.peak_fraction(DSGC)
    assert with_search is not None
    assert without is not None
    assert with_search > without > 0
    assert row.as_dict()["search"]["seconds"] == row.search_seconds


def test_inference_counts_what_training_counts_forward() -> None:
    base = SparseAnyway("vgg8", 4, width=0.5, image_size=16, threads=1)
    (row,) = measure([base.with_changes(mode="infer")], ONCE)
    dense, own = row.cells[EAGER].multiply_adds, row.cells[DSGC].multiply_adds
    assert dense is not None
    assert own is not None
    assert dense.done == own.dense > own.done > 0
    assert own.search > 0
    assert row.cells[EAGER].kept_bytes is None


def test_sides_start_from_the_same_parameters() -> None:
    workload = Workload("mlp", 4, width=0.02, threads=1)
    untouched, data = workload.build(), workload.data()
    every = sides.make_dense_sides(workload, untouched, data, compiled=False)
    every[DSGC] = sides.make_dsgc_side(workload, copy.deepcopy(untouched), data, "reference")
    expected = dict(untouched.named_parameters())
    for side in every.values():
        assert side.model is not None
        weight = side.model.get_parameter("layers.1.weight")
        assert not torch.equal(weight, expected["layers.1.weight"])  # it was made ready by steps
        side.reset(untouched.state_dict())
        assert torch.equal(weight, expected["layers.1.weight"])


def test_a_failing_compiler_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: nn.Module, **options: object) -> nn.Module:
        raise RuntimeError("backend='inductor' raised:\nno compiler\nand much more")

    monkeypatch.setattr(torch, "compile", fail)
    workload = Workload("mlp", 4, width=0.02, threads=1)
    (row,) = measure([workload], Options(1, 0, "reference", memory=False))
    assert row.cells[COMPILED].note == "failed: backend='inductor' raised: no compiler"
    assert row.ratio is not None
    assert row.ratio > 0


def test_dsgc_that_fails_leaves_a_note(user_module: Path) -> None:
    config = ["--input-shape", "3,8,8", "--classes", "5", "--batch", "2", "--threads", "1"]
    done = bench("mine:network", *config, *QUICK, "--no-compiled")
    assert done.exit_code == 1, done.output
    assert "failed: No layer was made sparse" in done.stdout
    assert "dsgc gave no time" in done.stdout


def test_a_model_of_ones_own(user_module: Path) -> None:
    (user_module / "mine.py").write_text(
        MODULE.replace("(3, 8, 3)", "(8, 16, 3)").replace("8 * 36", "16 * 36")
    )
    config = ["--input-shape", "8,8,8", "--classes", "5", "--batch", "2", "--threads", "1"]
    done = bench("mine:network", *config, *QUICK, "--no-compiled", "--json", "out.json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads((user_module / "out.json").read_text())["rows"]
    assert row["name"] == "mine:network-b2-s80"
    assert row["dsgc"]["step_seconds"] > 0
    assert row["compiled"]["step_seconds"] is None


def test_no_sparsity_runs_dense() -> None:
    with pytest.warns(UserWarning, match="runs dense"):
        (row,) = measure([Workload("mlp", 4, sparsity=0.0, width=0.02, threads=1)], ONCE)
    assert row.bound == 1.0
    assert row.achieved_sparsity is None
    assert any("no layer was made sparse" in line for line in verdicts([row]))


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg9"], "no network is called 'vgg9'"),
        (["vgg8", "--sparsity", "1.0"], "sparsity 1"),
        (["vgg8", "--sparsity", "-0.1"], "sparsity -0.1"),
        (["vgg8", "--block", "7"], "block=7"),
        (["vgg8", "--image-size", "4"], "vgg8-4px-b64 cannot"),
        (["vgg8", "--width", "0"], "width 0"),
        (["vgg8", "--input-shape", "3,32,32"], "--image-size"),
        (["mine:network"], "--input-shape is missing"),
        (["mine:network", "--input-shape", "3,8,8"], "--classes is missing"),
        (["mine:network", "--input-shape", "3,x", "--classes", "5"], "'3,x'"),
        (["mine:network", "--input-shape", "3,0,8", "--classes", "5"], "(3, 0, 8)"),
        (["mine:network", "--input-shape", "4,8,8", "--classes", "5"], "cannot read inputs"),
        (["mine:network", "--input-shape", "3,8,8", "--classes", "6"], "not (1, 6)"),
        (["mine:missing", "--input-shape", "3,8,8", "--classes", "5"], "AttributeError"),
        (["mine:number", "--input-shape", "3,8,8", "--classes", "5"], "gives a int"),
        (["theirs:network", "--input-shape", "3,8,8", "--classes", "5"], "'theirs'"),
        (["vgg8", "--plot", "picture.gif"], ".png or .svg"),
        (["vgg8", "--json", "nowhere/out.json"], "cannot be written"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_what_is_impossible_is_said(arguments: list[str], message: str) -> None:
    done = bench(*arguments, *QUICK, "--no-compiled")
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())


def test_missing_matplotlib_is_said_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = bench("vgg8", "--plot", "picture.png", *QUICK)
    assert done.exit_code == 1
    assert "pip install 'dsgc[bench]'" in done.stderr


def test_help_does_not_load_torch() -> None:
    code = "import sys, dsgc.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    shown = bench("--help")
    assert shown.exit_code == 0
    for option in ("sparsity", "threads", "mode", "no-compiled", "input-shape", "plot"):
        assert option in shown.stdout


# Words and pictures


def made_up(sparsity: float, dense: float, own: float, backend: str = "tvm") -> Row:
    """A row with made-up seconds."""
    cells = {name: Cell() for name, _ in TITLES}
    cells[EAGER] = Cell((2 * dense,), multiply_adds=MultiplyAdds(done=1000, dense=1000))
    cells[COMPILED] = Cell((dense,))
    counted = MultiplyAdds(100, 50, 1000, 1000, 1000 * (1 - sparsity))
    cells[DSGC] = Cell((own,), multiply_adds=counted)
    workload = Workload("vgg8", sparsity=sparsity)
    return Row(workload, 2, backend, cells, 0.25 * own, Peak(2000.0, 2, "made up"))


def test_figures_of_a_row() -> None:
    row = made_up(0.8, dense=1.0, own=0.5)
    assert row.best_dense == COMPILED
    assert row.ratio == 2.0
    assert row.bound == 10.0
    assert row.search_share(EAGER) == 0.0625
    assert row.search_share(DSGC) == 0.25
    assert row.peak_fraction(EAGER) == 0.25
    assert row.peak_fraction(DSGC) == pytest.approx(0.1)
    assert row.peak_fraction(DSGC, search=True) == pytest.approx(0.15)
    assert row.peak_fraction(COMPILED) is None


def test_the_words_say_where_dsgc_is_slower() -> None:
    faster, slower = made_up(0.8, 1.0, 0.5), made_up(0.5, 1.0, 1.5)
    assert verdicts([faster]) == []
    first, last = verdicts([faster, slower])
    assert "sparsity 50 %: dsgc is 1.50x slower than dense torch.compile" in first
    assert "slower than the best dense side in 1 of 2 rows" in last
    assert "never faster" in verdicts([made_up(0.8, 1.0, 0.9, "reference")])[0]


def not_blank(picture: Path) -> bool:
    from matplotlib.image import imread

    return bool(imread(picture)[..., :3].std() > 0.01)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_ratios_are_drawn(tmp_path: Path, kind: str) -> None:
    picture = tmp_path / f"picture.{kind}"
    draw_ratios([made_up(0.8, 1.0, 0.5), made_up(0.5, 1.0, 1.5)], picture)
    assert [path.name for path in tmp_path.iterdir()] == [picture.name]
    if kind == "png":
        assert not_blank(picture)
    else:
        assert picture.read_text().count("<path") > 10


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "out.json"
    place.write_text("before")

    def fail(scratch: Path) -> None:
        scratch.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(place, fail)
    assert place.read_text() == "before"
    assert list(tmp_path.iterdir()) == [place]


# Machine


def test_machine_is_described() -> None:
    facts = describe_machine()
    assert facts["cpu"]
    assert facts["torch"] == torch.__version__
    json.dumps(facts)


def test_peak_of_the_machine() -> None:
    found = machine_peak()
    assert found.multiply_adds > 1e8
    assert found.threads == 1
    assert "kernel" in found.method


def test_peak_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KernelError("no compiler\nat all")

    monkeypatch.setattr(peak, "_kernel", fail)
    monkeypatch.setattr(peak, "_MATRIX", 64)
    found = machine_peak()
    assert found.multiply_adds > 0
    assert found.method == "a large torch matrix product (no kernel: no compiler)"


def test_search_is_found_in_a_profile() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    config = dsgc.SparsityConfig(rules={"0": 0.5, "2": 0.5})
    sparse = dsgc.compile(model, config=config, backend="tvm").eval()
    x = torch.randn(8, 64)
    with torch.no_grad():
        sparse(x)
        assert search_seconds(lambda: sparse(x), steps=2) > 0
        assert search_seconds(lambda: model(x), steps=1) == 0


def test_memory_of_a_process() -> None:
    workload = Workload("mlp", 4, width=0.1, threads=1)
    found = process_peak(workload, EAGER)
    parameters = sum(4 * one.numel() for one in workload.build().parameters())
    # Parameters, gradients and momentum at the least.
    assert 3 * parameters < found.above_start < found.peak
    with pytest.raises(DsgcError, match="vgg8-4px"):
        process_peak(Workload("vgg8", 4, image_size=4), DSGC)


# benchmarks


def test_benchmark_rows_have_names_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.main(["--list"])
    names = capsys.readouterr().out.split()
    assert len(set(names)) == len(WORKLOADS)
    assert {workload.model for workload in WORKLOADS} <= set(zoo.NAMES)
    with pytest.raises(SystemExit):
        benchmarks.main(["nonsense"])


def test_benchmark_of_one_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "out.json"
    options = ["--backend", "reference", "--no-compiled", "--json", str(place)]
    benchmarks.main([*options, "--sparsity", "0.5", *SMALL, *QUICK], network="vgg8")
    (row,) = json.loads(place.read_text())["rows"]
    assert row["name"] == "vgg8-16px-w0.25-b4-s50"
    assert row["backend"] == "reference"
    assert row["search"]["seconds"] is None
    assert "never faster" in capsys.readouterr().out


def test_benchmark_of_named_rows(capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.main(["dsg_resnet8-b64-s80", "--no-compiled", *SMALL, *QUICK])
    assert "dsg_resnet8-16px-w0.25-b4" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        benchmarks.main(["--sparsity", "2"])
    assert caught.value.code == 2


def test_workload_changes_leave_out_what_is_not_given() -> None:
    workload = Workload("vgg8", batch=8).with_changes(batch=None, sparsity=0.5)
    assert (workload.batch, workload.sparsity) == (8, 0.5)
    assert workload.name == "vgg8-b8-s50"
    with pytest.raises(ConfigError, match="batch"):
        workload.with_changes(batch=0)


def test_layers_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "layers.json"
    quick = ["--batch", "2", "--rounds", "1", "--warmup", "0", "--threads", "1"]
    layers.main([*quick, "--layers", "5", "6", "--sparsity", "0.8", "--json", str(place)])
    content = json.loads(place.read_text())
    assert [row["layer"]["number"] for row in content["rows"]] == [5, 6]
    for row in content["rows"]:
        for name in layers.PASSES:
            assert row["dense"][name]["median"] > 0
            assert row["dsgc"][name]["median"] > 0
        assert set(row["ratios"]) == {*layers.PASSES, "all"}
        assert row["search_shares"]["of_forward_and_backward"] > 0
    (means,) = content["geometric_means"]
    expected = (content["rows"][0]["ratios"]["all"] * content["rows"][1]["ratios"]["all"]) ** 0.5
    assert means["all"] == pytest.approx(expected)
    assert "geometric mean" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        layers.main(["--sparsity", "1"])


def test_dense_layer_reads_a_dense_map() -> None:
    (first, *others) = layers.LAYERS
    assert first.source == "dense"
    assert all(layer.source != "dense" for layer in others)
    result = layers.measure_layer(replace(first, size=4), 0.5, batch=1, rounds=1, warmup=0)
    assert result.search.median > 0


def test_onnxruntime_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    side = sides.make_dense_sides(
        Workload("mlp", 2, width=0.02, mode="infer"),
        zoo.build("mlp", width=0.02),
        Workload("mlp", 2).data(),
        compiled=False,
    )[ONNXRUNTIME]
    assert side.step is None
    assert side.note == "not installed (onnxruntime)"


def test_an_artifact_is_measured_beside_other_runtimes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "calls.json"
    options = ["--width", "0.25", "--image-size", "16", "--rounds", "1", "--threads", "1"]
    artifact.main([*options, "--batch", "3", "--json", str(file)])
    assert "A call of vgg8 at 80%" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    assert row["batch"] == 3
    assert set(row["seconds"]) == set(artifact.SIDES)
    assert all(len(seconds) == 1 for seconds in row["seconds"].values())
    with pytest.raises(SystemExit, match="cannot be written"):
        artifact.main([*options, "--json", str(tmp_path / "nowhere" / "x.json")])
