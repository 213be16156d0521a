"""The pages for people who extend dsgc: their code runs, and prints what the page says it does.

A page is followed from top to bottom in an empty directory. A `python` block whose first line is
`# name.py` is that file; any other runs, and must print exactly what the `text` block right behind
it shows. An `sh` block is one pytest command. A `diff` block must fit the file that it names.
"""

from __future__ import annotations

import gc
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (
    "how-dsgc-reads-your-model",
    "inspect",
    "write-a-pass",
    "add-an-operator",
    "add-a-target",
)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and the line that it begins at."""

    language: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page in order; `page` is its text."""
    return [
        Block(found[1], found[2], page.count("\n", 0, found.start(2)))
        for found in _BLOCK.finditer(page)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to work in; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]
    gc.collect()  # operators of the page go with the library that holds them


def follow(text: str, name: str) -> None:
    """Do what a page says, in the current directory."""
    blocks = blocks_of(text)
    namespace: dict[str, object] = {"__name__": name}
    for block, behind in zip(blocks, [*blocks[1:], None], strict=True):
        title = re.match(r"# (\w+\.py)\n", block.text)
        if block.language == "python" and title:
            Path(title[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            shown = behind.text if behind is not None and behind.language == "text" else ""
            assert _printed(block, name, namespace) == shown, f"{name}, line {block.line}"
        elif block.language == "sh":
            _test(block, name)
        elif block.language == "diff":
            _fits(block, name)
        else:
            assert block.language == "text", f"{name}, line {block.line}: {block.language}"


def _printed(block: Block, name: str, namespace: dict[str, object]) -> str:
    # Empty lines in front, so that tracebacks name the line of the page.
    code = compile("\n" * block.line + block.text, f"{name}.md", "exec")
    with redirect_stdout(io.StringIO()) as out:
        exec(code, namespace)
    return out.getvalue()


def _test(block: Block, name: str) -> None:
    command, *arguments = shlex.split(block.text)
    assert command == "pytest", f"{name}, line {block.line}: only pytest is run"
    own = ["--rootdir=.", "-p", "no:cacheprovider", "-p", "no:xdist"]
    assert pytest.main([*own, *arguments]) == 0, f"{name}, line {block.line}"


def _fits(block: Block, name: str) -> None:
    """Every line that a diff keeps or removes is one of the file that its first line names."""
    header, *lines = block.text.splitlines()
    known = (ROOT / header.removeprefix("+++ ")).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line[0] in " -"]
    assert kept, f"{name}, line {block.line}"
    for line in kept:
        assert line[1:] in known, f"{name}, line {block.line}: {line[1:]!r} is not in {header}"


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.usefixtures("folder")
def test_a_page_does_what_it_says(name: str) -> None:
    follow((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), name)


def test_every_page_is_linked() -> None:
    for place in ("README.md", "docs/design.md"):
        text = (ROOT / place).read_text(encoding="utf-8")
        for name in PAGES:
            assert f"{name}.md)" in text, f"{place} does not lead to {name}"


@pytest.mark.parametrize(
    "wrong",
    [
        "```python\nprint(1)\n```\n```text\n2\n```\n",
        "```python\nprint(1)\n```\n",
        "```python\n# one.py\nx = 1\n```\n```python\nimport one\nassert one.x == 2\n```\n",
        "```python\n# test_a.py\ndef test_it():\n    assert 0\n```\n```sh\npytest test_a.py\n```\n",
        "```diff\n+++ README.md\n-no such line\n+another\n```\n",
        "```sh\nls\n```\n",
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_page_that_is_wrong_is_found_out(wrong: str) -> None:
    with pytest.raises(AssertionError):
        follow(wrong, "page")
