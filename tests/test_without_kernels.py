"""A machine on which kernels cannot be built: what each backend does there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = textwrap.dedent("""
    import sys, warnings
    import torch, dsgc
    from torch import nn

    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
    config = dsgc.SparsityConfig(rules={"0": 0.5})
    sparse = dsgc.compile(model, config=config, backend=sys.argv[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for _ in range(2):
                sparse(torch.randn(2, 16, 6, 6)).sum().backward()
        except dsgc.DsgcError as error:
            print(type(error).__name__, error)
    print("ran on", sparse.backend)
    print(*(f"{len(caught)} warning: {one.message}" for one in caught))
""")


def _run(backend: str, **environment: str) -> str:
    command = [sys.executable, "-c", PROGRAM, backend]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.fixture
def blocked(tmp_path: Path) -> str:
    """A place where no directory can be made."""
    (tmp_path / "file").write_text("in the way")
    return str(tmp_path / "file" / "cache")


def test_auto_falls_back_and_warns_once(blocked: str) -> None:
    output = _run("auto", DSGC_CACHE=blocked)
    assert "ran on reference" in output
    assert "1 warning: dsgc: running in plain PyTorch" in output
    assert "DSGC_CACHE" in output


def test_tvm_says_what_is_missing(blocked: str) -> None:
    output = _run("tvm", DSGC_CACHE=blocked)
    assert "KernelError" in output
    assert "file/cache" in output


def test_without_a_compiler(tmp_path: Path) -> None:
    output = _run("auto", DSGC_CACHE=str(tmp_path), PATH=str(tmp_path), CC="")
    assert "ran on reference" in output
    assert "install g++" in output
    assert "NoneType" not in output
