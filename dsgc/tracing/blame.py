"""Which module of the user is at fault, and on which line of which file."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import fx, nn

from dsgc.warn_user import NOT_THE_USERS

__all__ = ["explain", "is_torch_layer", "user_line", "where"]


def is_torch_layer(module: nn.Module) -> bool:
    """Whether calling `module` runs code of torch.nn itself, Sequential excepted."""
    forward = type(module).forward
    where = getattr(forward, "__module__", "") or ""
    return where.startswith(("torch.nn", "torch.ao.nn")) and forward is not nn.Sequential.forward


def explain(error: BaseException, root: nn.Module, known: set[nn.Module]) -> tuple[nn.Module, str]:
    """The innermost module of the user in whose forward `error` happened, and where it did."""
    culprit, place = root, ""
    for frame, line in _frames(error.__traceback__):
        code = frame.f_code
        # The first argument of a method, whatever it is called.
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and owner in known and not is_torch_layer(owner):
            # Sequential's own forward is torch's code, never the culprit.
            if type(owner).forward is nn.Sequential.forward:
                continue
            if code.co_name == "forward" and owner is not culprit:
                culprit, place = owner, ""
            if owner is culprit:
                text = linecache.getline(code.co_filename, line).strip()
                place = f" at {code.co_filename}:{line}" + (f": `{text}`" if text else "")
    message = " ".join(str(error).split()) or type(error).__name__
    return culprit, f"{type(error).__name__}: {message}{place}"


def _frames(traceback: TracebackType | None) -> Iterator[tuple[Any, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def where(module: nn.Module, pattern: str = "training") -> str:
    """File and line of a module's forward; the line that `pattern` is found in where one is."""
    forward = inspect.unwrap(type(module).forward)
    places: tuple[Any, ...] = (forward, type(module))
    for place in places:
        try:
            lines, first = inspect.getsourcelines(place)
            file = inspect.getsourcefile(place) or "?"
        except (OSError, TypeError):
            continue
        found = [first + i for i, text in enumerate(lines) if re.search(pattern, text)]
        if found:
            return f"({file}:{found[0]})"
    code = getattr(forward, "__code__", None)
    return f"({code.co_filename}:{code.co_firstlineno})" if code is not None else ""


def user_line(node: fx.Node) -> str:
    """`file:line` of the user's code that made `node`, or the empty string."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    models = str(Path(NOT_THE_USERS[0]) / "zoo")
    mine = [
        f"{file}:{line}"
        for file, line in places
        if file.startswith(models) or not file.startswith(NOT_THE_USERS)
    ]
    return mine[-1] if mine else ""
