"""The disk cache of compiled kernels: content keys, atomic writes, damage, concurrent builders."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dsgc.codegen import build, families
from dsgc.codegen.cache import KernelCache, content_key, default_directory
from dsgc.errors import KernelError


def test_keys_differ_with_every_part_and_its_boundaries() -> None:
    keys = {
        content_key("a", "b", "c"),
        content_key("a", "bc", ""),
        content_key("a", "b", "d"),
        content_key("ab", "", "c"),
    }
    assert len(keys) == 4
    assert content_key("a", "b") == content_key("a", "b")


def test_builds_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_bytes(b"library")

    cache = KernelCache(tmp_path)
    first = cache.get("key", build)
    second = KernelCache(tmp_path).get("key", build)
    assert first == second
    assert first.read_bytes() == b"library"
    assert len(built) == 1


def test_artifacts_take_what_libraries_are_linked_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, family = KernelCache(tmp_path), families.norms()
    build.build_library(family, cache)

    def compiled_again(*_: object) -> None:
        raise AssertionError("it is compiled again")

    monkeypatch.setattr(build, "compile_family", compiled_again)
    assert build.build_object(family, cache).read_bytes()[:4] == b"\x7fELF"


def test_a_damaged_entry_is_built_again(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    path = cache.get("key", lambda path: path.write_bytes(b"good"))
    path.write_bytes(b"trunc")
    assert cache.get("key", lambda path: path.write_bytes(b"again")).read_bytes() == b"again"


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("the compiler fell over")

    with pytest.raises(KernelError, match=r"fell over.*DSGC_CACHE"):
        KernelCache(tmp_path).get("key", build)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(KernelError, match="file/cache"):
        KernelCache(blocked / "cache").get("key", lambda path: path.write_bytes(b""))


def test_directory_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DSGC_CACHE", str(tmp_path))
    assert default_directory() == tmp_path


def test_two_processes_that_build_at_once_agree(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from dsgc.codegen.cache import KernelCache

        def build(path):
            path.write_bytes(b"x" * 1000)
            time.sleep(0.5)

        print(KernelCache(Path(sys.argv[1])).get("key", build).read_bytes() == b"x" * 1000)
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["True"] * 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
