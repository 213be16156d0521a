"""Whether it is the user's code that asks for the class of a value, and how it asks."""

from __future__ import annotations

import builtins
import dis
import enum
import inspect
import linecache
import re
import sys
from itertools import takewhile
from types import FrameType
from typing import Any

from torch import nn

__all__ = ["Asker", "asker", "compares_types"]

_NAME = re.compile(r"[A-Za-z_][\w.]*")
_COMPARISON = re.compile(
    r"\btype\([^()]*\)\s*(?:is|==|!=|in|not)\b[^\n]*\bTensor\b|\bissubclass\(\s*type\("
)


class Asker(enum.Enum):
    """Who wants to know the class of a value: the user's code, other code, or one cannot tell."""

    USER = enum.auto()
    OTHER = enum.auto()
    UNKNOWN = enum.auto()


def asker(depth: int) -> Asker:
    """Who has asked, `depth` frames above the caller of this.

    C code has no frame, and asks as well: torch tries the signatures of a function one by one, and
    takes the memory of whatever says that it is a tensor. So the instruction counts at which the
    innermost frame is.
    """
    frame = inner = sys._getframe(depth + 1)
    while frame.f_back is not None and _package(frame) in sys.stdlib_module_names:
        frame = frame.f_back
    if frame.f_code.co_name == "is_tensor":
        return Asker.USER
    if _package(frame) in ("torch", "dsgc"):
        return Asker.OTHER
    return Asker.USER if frame is not inner else _by_instruction(frame)


def _by_instruction(frame: FrameType) -> Asker:
    operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    if operation in ("MATCH_CLASS", "LOAD_ATTR"):
        return Asker.USER
    if "CALL" not in operation:
        return Asker.OTHER  # an operator: its C code asks
    line, _, column, _ = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    text = linecache.getline(frame.f_code.co_filename, line or 0).encode()
    if not text or column is None:
        return Asker.UNKNOWN
    called = _NAME.match(text[column:].decode(errors="replace"))
    if called is None:
        return Asker.UNKNOWN
    found = _value(called[0], frame)
    if found is isinstance:
        return Asker.USER
    # `map`, `partial` and the like call `isinstance` for others.
    made_by = getattr(found, "__module__", None)
    return Asker.UNKNOWN if made_by in ("builtins", "functools") else Asker.OTHER


def _value(name: str, frame: FrameType) -> Any:
    first, *rest = name.split(".")
    for names in (frame.f_locals, frame.f_globals, vars(builtins)):
        if first in names:
            found = names[first]
            break
    else:
        return None
    # Attributes of modules alone: others may run code.
    for attribute in rest:
        found = vars(found).get(attribute) if inspect.ismodule(found) else None
    return found


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def compares_types(module: nn.Module) -> str:
    """Where the code of a module compares `type(x)` with that of tensors, which a value that is
    recorded cannot answer; nothing if it does not.
    """
    kinds = takewhile(lambda kind: kind is not nn.Module, type(module).__mro__)
    for function in (one for kind in kinds for one in vars(kind).values()):
        code = getattr(function, "__code__", None)
        if code is None or not {"type", "Tensor"} <= {*code.co_names, *code.co_freevars}:
            continue
        try:
            found = _COMPARISON.search(inspect.getsource(code))
        except (OSError, TypeError):
            continue
        if found:
            return found[0]
    return ""
