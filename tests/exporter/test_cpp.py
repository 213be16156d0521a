"""The C++ runtime computes what the Python runtime computes, natively and on 64-bit ARM."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import dsgc
import dsgc_runtime
from dsgc.codegen.target import host_target
from dsgc_runtime import arena
from tests.exporter.cpp import Programs, hand_made, kernels, tool
from tests.exporter.networks import IMAGE, Small, exported, make_sparse
from tests.exporter.test_damage import rewritten, set_at

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dsgc.SparseModule, Path]:
    return exported(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return kernels(tmp_path_factory.mktemp("kernels"))


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def outputs_of(
    programs: Programs, artifact: Path, inputs: list[Array], outputs: int = 1, *options: object
) -> list[Array]:
    """What the example program makes of these inputs."""
    folder = artifact.parent
    given = [folder / f"in{i}.npy" for i in range(len(inputs))]
    made = [folder / f"out{i}.npy" for i in range(outputs)]
    for place, array in zip(given, inputs, strict=True):
        np.save(place, array)
    named = [part for place in made for part in ("--out", place)]
    programs.run(artifact, *given, *named, *options)
    return [np.load(place) for place in made]


class Two(nn.Module):
    """Two inputs, two outputs, and a hidden layer on matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Small().features
        self.hidden = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU())
        self.last = nn.Linear(48, 5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(x)
        return maps, self.last(self.hidden(y))


def make_two(folder: Path) -> tuple[Path, list[tuple[int, ...]]]:
    sparse = make_sparse(Two())
    example = (torch.randn(4, *IMAGE), torch.randn(4, 48))
    return dsgc.export(sparse, folder / "two.dsgc", example), [IMAGE, (48,)]


def make_fine(folder: Path) -> tuple[Path, list[tuple[int, ...]]]:
    sparse = make_sparse(Small(), block=1, selector="drs")
    return dsgc.export(sparse, folder / "fine.dsgc", torch.randn(4, *IMAGE)), [IMAGE]


def make_older(folder: Path) -> tuple[Path, list[tuple[int, ...]]]:
    """For a processor without what this one may have."""
    target = "avx2" if host_target().lanes >= 8 else "x86-64"
    sparse = make_sparse(Small())
    x = torch.randn(4, *IMAGE)
    return dsgc.export(sparse, folder / "older.dsgc", x, target=target), [IMAGE]


@pytest.mark.parametrize("make", [make_two, make_fine, make_older], ids=lambda make: make.__name__)
def test_it_computes_what_python_computes(
    native: Programs,
    tmp_path: Path,
    make: Callable[[Path], tuple[Path, list[tuple[int, ...]]]],
) -> None:
    """The same kernels in the same order: not a bit differs, on any number of threads."""
    path, shapes = make(tmp_path)
    model = dsgc_runtime.load(path, threads=1)
    for batch, threads in ((4, 1), (1, 2), (3, 2), (0, 1)):
        inputs = [random(batch, *shape) for shape in shapes]
        made = model(*inputs)
        wanted = made if isinstance(made, tuple) else (made,)
        found = outputs_of(native, path, inputs, len(wanted), "--threads", threads)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_it_says_what_python_says(native: Programs, small: tuple[dsgc.SparseModule, Path]) -> None:
    model = dsgc_runtime.load(small[1])

    def text(kind: str, port: Any) -> str:
        shape = " ".join("batch" if n is None else str(n) for n in port.shape)
        return f"{kind} {port.name} {port.dtype} {shape}"

    assert native.check("describe", small[1]) == [
        f"3 threads, {len(model.graph)} characters of graph",
        *(text("input", port) for port in model.inputs),
        *(text("output", port) for port in model.outputs),
        *(
            f"layer {x.name} {int(x.sparse)} {x.sparsity:.6f} {x.multiply_adds} {x.reason}"
            for x in model.layers
        ),
    ]


def test_many_threads_may_call_at_once(
    native: Programs, small: tuple[dsgc.SparseModule, Path]
) -> None:
    assert native.check("threads", small[1]) == ["96 of 96"]


def test_inputs_that_do_not_fit_are_named(
    native: Programs, small: tuple[dsgc.SparseModule, Path]
) -> None:
    wanted = "InputError: input 'input' must be float32 [batch, 3, 12, 12], not"
    assert native.check("refusals", small[1]) == [
        "InputError: the model takes 1 inputs (input), not 0",
        f"{wanted} float32 [2, 3, 12, 11]",
        f"{wanted} float32 [3, 12, 12]",
        f"{wanted} int32 [2, 3, 12, 12]",
        f"{wanted} float32 [-1, 3, 12, 12]",
        f"{wanted} float32 [{1 << 62}, 3, 12, 12]",
        "InputError: an input has no data",
        "InputError: an empty batch takes no time: profile a call with samples",
        "invalid_argument: threads must be a number from 1 to 1024, or nothing, not 0",
        "invalid_argument: threads must be a number from 1 to 1024, or nothing, not -1",
        f"InputError: no tensor can have an extent of {1 << 30} here",
        "InputError: the tensor is float32, not int32",
        "equal",
    ]


def test_a_fixed_batch_is_kept(native: Programs, tmp_path: Path) -> None:
    sparse = make_sparse(Small())
    x = torch.randn(4, *IMAGE)
    path = dsgc.export(sparse, tmp_path / "model.dsgc", x, dynamic_batch=False)
    np.save(tmp_path / "x.npy", x[:3].numpy())
    done = native.run(path, tmp_path / "x.npy", expect=6)
    assert "exported for batches of 4, not 3: export it with dynamic_batch=True" in done.stderr
    np.save(tmp_path / "x.npy", x[:, :, :-1].numpy())
    assert "[batch, 3, 12, 12], not" in native.run(path, tmp_path / "x.npy", expect=6).stderr
    np.save(tmp_path / "x.npy", x.numpy())
    native.run(path, tmp_path / "x.npy")


def test_a_profile_has_every_layer(
    native: Programs, small: tuple[dsgc.SparseModule, Path], tmp_path: Path
) -> None:
    x = random(4, *IMAGE)
    np.save(tmp_path / "x.npy", x)
    printed = native.run(small[1], tmp_path / "x.npy", "--profile").stdout.splitlines()
    rows = [line.split() for line in printed[2:]]
    layers = dsgc_runtime.load(small[1]).profile(x)
    assert [row[0] for row in rows] == [layer.name for layer in layers]
    for row, layer in zip(rows, layers, strict=True):
        assert float(row[1]) >= 0
        assert row[-1] == f"{layer.bytes / 1e6:.2f}"
        assert (f"{layer.sparsity or 0:.0%}" in row[3:]) == (layer.sparsity is not None)


def test_files_of_many_kinds(
    native: Programs, small: tuple[dsgc.SparseModule, Path], tmp_path: Path
) -> None:
    x = random(3, *IMAGE)
    wanted = dsgc_runtime.load(small[1])(x)
    bare, out = tmp_path / "x.raw", tmp_path / "y.npy"
    bare.write_bytes(x.tobytes())
    native.run(small[1], bare, "--out", out)
    np.testing.assert_array_equal(np.load(out), wanted)

    def refused(name: str, content: bytes, said: str) -> None:
        place = tmp_path / name
        place.write_bytes(content)
        assert said in native.run(small[1], place, expect=6).stderr

    for name, array, said in (
        ("fortran", np.asfortranarray(x), "Fortran's order"),
        ("double", x.astype(np.float64), "holds <f8"),
        ("whole", x.astype(np.int32), "not int32 [3, 3, 12, 12]"),
        ("flat", x.reshape(-1), "not float32 [1296]"),
    ):
        np.save(tmp_path / name, array)
        refused(name, (tmp_path / f"{name}.npy").read_bytes(), said)
    np.save(tmp_path / "x.npy", x)
    good = (tmp_path / "x.npy").read_bytes()
    refused("short", good[:-1], "5183 bytes of numbers, not 5184")
    refused("header", good[:40], "not an .npy file")
    refused("version", good[:6] + b"\x09" + good[7:], "not an .npy file")
    refused("long", good[:8] + b"\xff\xff" + good[10:200], "not an .npy file")
    refused("huge", good.replace(b"(3, 3,", b"(" + b"9" * 15 + b", 9" * 9), "tensor can have")
    refused("bare", b"x" * 1000, "not whole samples of 1728")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "there is no model"),
        (("m.dsgc", "--out"), 2, "--out needs a value"),
        (("m.dsgc", "--threads", "many"), 2, "--threads needs a number"),
        (("m.dsgc", "--fast"), 2, "no option --fast"),
        (("m.dsgc", "--threads", "0"), 2, "number from 1 to 1024"),
        (("nothing.dsgc", "x"), 1, "nothing.dsgc: No such file"),
        (("/", "x"), 1, "Is a directory"),
    ],
)
def test_wrong_commands_are_refused(
    native: Programs, arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert said in native.run(*arguments, expect=code).stderr


# The kernels of runtime/cpp/tests/kernels.c


def view(buffer: int | str, *shape: object, dtype: str = "float32") -> dict[str, object]:
    kind = "buffer" if isinstance(buffer, int) else "constant"
    return {kind: buffer, "dtype": dtype, "shape": shape}


AFFINE: dict[str, object] = {
    "kernel": "affine",
    "arguments": [
        *(view(0, "batch", 4), view(1, "batch", 4)),
        *({"float": "-2.5"}, {"int": ["ceil", ["*", "batch", 5], 2]}),
    ],
}


def test_kernels_get_what_the_program_says(
    native: Programs, library: bytes, tmp_path: Path
) -> None:
    path = hand_made(tmp_path / "hand.dsgc", library, [AFFINE])
    for batch in (1, 2, 5):
        x = random(batch, 4)
        (found,) = outputs_of(native, path, [x])
        np.testing.assert_array_equal(found, x * np.float32(-2.5) + -(-batch * 5 // 2))


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("fail", "ValueError: on purpose"),
        ("fail_in_parts", "TypeError: said in parts"),
        ("fail_in_silence", "it did not say why"),
        ("fail_in_a_task", "ValueError: in a task"),
        ("call_another_library", "RuntimeError: a kernel calls the function elsewhere"),
        ("call_a_function", "RuntimeError: a kernel calls a function outside"),
        ("make_nothing", "RuntimeError: a kernel made a handle of nothing"),
        ("make_once", None),
    ],
)
def test_what_a_kernel_says_when_it_gives_up(
    native: Programs, library: bytes, tmp_path: Path, kernel: str, said: str | None
) -> None:
    step = {"kernel": kernel, "arguments": [], "layer": "a layer"}
    path = hand_made(tmp_path / "hand.dsgc", library, [AFFINE, step])
    np.save(tmp_path / "x.npy", random(3, 4))
    for threads in (1, 2):
        command = (path, tmp_path / "x.npy", "--threads", threads)
        done = native.run(*command, expect=0 if said is None else 7)
        if said is not None:
            assert f"the kernel {kernel} of layer 'a layer' gave up: {said}" in done.stderr


@pytest.mark.parametrize(("count", "most"), [(3, 3), (0, 3), (4, 3), (-1, 3)])
def test_counts_are_read_and_bounded(
    native: Programs, library: bytes, tmp_path: Path, count: int, most: int
) -> None:
    """A size that a kernel counts becomes an extent of what follows, if it is possible."""
    vector = view(2, 5, dtype="int32")
    program: list[dict[str, object]] = [
        AFFINE,
        {"kernel": "count", "arguments": [vector, {"int": abs(count)}]},
        {"read": "slots", "arguments": [vector], "most": most},
        {"kernel": "expect", "arguments": [view(3, "slots", dtype="int8"), {"int": abs(count)}]},
    ]
    if count < 0:  # a vector without elements has no last one
        program[2] = {"read": "slots", "arguments": [view(2, 0, dtype="int32")], "most": most}
    path = hand_made(tmp_path / "hand.dsgc", library, program, [20, most])
    np.save(tmp_path / "x.npy", random(2, 4))
    fits = 0 <= count <= most
    done = native.run(path, tmp_path / "x.npy", expect=0 if fits else 3)
    assert fits or f"the program counted {count} slots" in done.stderr


def test_nothing_of_tvm_ffi_is_in_the_way(
    native: Programs, library: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps its errors, whichever of the two the process finds first."""
    listed = subprocess.run(
        [tool("nm"), "-D", "--defined-only", native.library],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_ZN4dsgc5Model" in listed.stdout
    assert "TVMFFI" not in listed.stdout
    step = {"kernel": "fail_in_a_task", "arguments": []}
    path = hand_made(tmp_path / "hand.dsgc", library, [step])
    from tvm_ffi.libinfo import find_libtvm_ffi

    for first in ("", str(find_libtvm_ffi())):
        monkeypatch.setenv("LD_PRELOAD", first)
        said, *kept = native.check(str(path), program="dsgc_beside_ffi")
        assert said.endswith("gave up: ValueError: in a task")
        assert kept == ["KeyError", "raised before", "1"]


# What the runtimes have twice


def test_both_plan_arenas_alike(native: Programs) -> None:
    generator = np.random.default_rng(0)
    plans, lines = [], []
    for _ in range(200):
        sizes = generator.integers(0, 5000, generator.integers(0, 30))
        ends = np.sort(generator.integers(0, 20, (len(sizes), 2)))
        needed = [(int(n), int(a), int(b)) for n, (a, b) in zip(sizes, ends, strict=True)]
        offsets, total = arena.plan(needed)
        plans.append([*offsets, total])
        lines.append(" ".join(str(number) for one in needed for number in one))
    found = native.check("arena", given="\n".join(lines) + "\n")
    assert [[int(n) for n in line.split()] for line in found] == plans


def test_hashes_are_right(native: Programs, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(70_000)
    for length in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, len(data)):
        place = tmp_path / "data"
        place.write_bytes(data[:length])
        assert native.check("sha256", place) == [hashlib.sha256(data[:length]).hexdigest()]


# 64-bit ARM


def test_an_artifact_for_arm_computes_the_same_there(
    arm: Programs, small: tuple[dsgc.SparseModule, Path], tmp_path: Path
) -> None:
    """Rounding differs between processors, and blocks that rank almost equal may change places.

    That is rare: a batch in which it happens is followed by one in which it must not happen.
    """
    here = dsgc_runtime.load(small[1], threads=1)
    example = torch.randn(4, *IMAGE)
    path = dsgc.export(small[0], tmp_path / "arm.dsgc", example, target="aarch64")

    def difference(x: Array) -> float:
        wanted = cast("Array", here(x))
        (found,) = outputs_of(arm, path, [x], 1, "--threads", 2)
        return float(np.abs(found - wanted).max() / np.abs(wanted).max())

    for batch in (4, 1, 3):
        assert any(difference(random(batch, *IMAGE) * scale) <= 1e-5 for scale in (1, 2))
    broken = rewritten(path, tmp_path, set_at("program.0.arguments.0.shape", [1]))
    said = arm.run(broken, tmp_path / "in0.npy", expect=7).stderr
    assert "gave up: ValueError: Mismatched x.ndim" in said
    if platform.machine() != "aarch64":
        assert "is for x86_64, and this is aarch64" in arm.run(small[1], "x", expect=5).stderr


def test_the_library_for_arm_needs_only_what_boards_have(arm: Programs) -> None:
    listed = subprocess.run(
        [tool("aarch64-linux-gnu-readelf"), "-d", arm.library],
        capture_output=True,
        text=True,
        check=True,
    )
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", listed.stdout))
    common = {"libc.so.6", "libstdc++.so.6"}
    assert common <= needed
    assert needed <= common | {"libm.so.6", "libgcc_s.so.1", "ld-linux-aarch64.so.1", "libdl.so.2"}
