"""Changes artifacts so that what is changed gets past the hashes."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

from tests.fuzz.artifacts import smallest, taken_apart, zipped

__all__ = ["mutated"]

Bytes = Callable[[bytes], bytes]

_NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 31, (1 << 45) + 1, (1 << 46) - 1, 1 << 46, 1 << 63, 1 << 64)
_TEXTS = ("", "batch", "n", "w", "x", "\ud800", "\0", "é" * 40, "../x", "int32", "int64", "uint8",
          "nan", "-inf", "1e999", "1_0", "manifest.json", "riscv64", "slots0")  # fmt: skip
_DTYPES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
           "U8": 1, "I8": 1, "BOOL": 1, "C64": 8, "U16": 2, "X": 1}  # fmt: skip


def mutated(data: bytes, seed: int, mutate_bytes: Bytes) -> bytes:
    """`data` with bytes changed anywhere, or in the records of the container; or, with hashes made
    to fit, in its manifest or weights.

    Args:
        mutate_bytes: changes bytes without knowing what they are.
    """
    rng = random.Random(seed)
    # What comes from far is mostly broken in many ways, and the first of them hides the others.
    parts = taken_apart(data) if rng.random() < 0.7 else smallest()
    choice = rng.random()
    if choice < 0.15 and b"PK" in data:
        return _records(data, rng)
    if parts is None or choice < 0.25:
        return mutate_bytes(data)
    manifest, members = parts
    try:
        if choice < 0.8:
            for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
                _change(manifest, rng)
        else:
            name = "weights.safetensors"
            members[name] = _weights(members[name], rng, mutate_bytes)
        return zipped(manifest, members, hashes=rng.random() < 0.95)
    except (RecursionError, ValueError):  # too deep or too long to be copied or written
        return mutate_bytes(data)


def _records(data: bytes, rng: random.Random) -> bytes:
    """With other numbers in the records that a zip file is made of."""
    made = bytearray(data)
    places = [at for at in range(len(data) - 46) if data[at : at + 2] == b"PK"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.choice(places or [0]) + rng.randrange(46)
        width = rng.choice((1, 2, 4))
        number = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(32)
        made[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(made)


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every value inside `value`, as its owner and its key there."""
    stack = [value]
    while stack:
        owner = stack.pop()
        items = owner.items() if isinstance(owner, dict) else enumerate(owner)
        for key, one in items:
            found.append((owner, key))
            if isinstance(one, (dict, list)):
                stack.append(one)
    return found


def _change(content: dict[str, Any], rng: random.Random) -> None:
    """Change one thing in a JSON value."""
    places = _places(content, [])
    if not places:
        content["format"] = 1
        return
    owner, key = rng.choice(places)
    kind = rng.randrange(9)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    elif kind == 2 and isinstance(owner, dict):
        owner[
            rng.choice((*_TEXTS, "int", "float", "read", "kernel", "buffer", "constant", "most"))
        ] = owner.pop(key)
    elif kind in (3, 4):
        source, other = rng.choice(places)
        owner[key] = copy.deepcopy(source[other])
    elif kind == 5 and isinstance(owner[key], int):
        owner[key] += rng.choice((-1, 1, 8))
    elif kind == 6:
        owner[key] = [
            rng.choice(("+", "*", "ceil", "-")),
            owner[key],
            rng.choice((1, 2, "batch", 0)),
        ]
    elif kind == 7 and isinstance(owner, list) and len(owner) < 64:
        owner *= 2
    else:
        owner[key] = _anything(rng)


def _anything(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        deep: Any = 1
        for _ in range(rng.choice((3, 39, 41, 300, 900))):
            deep = [deep] if rng.random() < 0.9 else ["+", deep, 1]
        return deep
    if kind < 4:
        return rng.choice(_NUMBERS)
    if kind < 6:
        return rng.choice(_TEXTS)
    return rng.choice((None, True, False, [], {}, 0.5, float("inf"), float("nan"), "9" * 5000))


def _weights(data: bytes, rng: random.Random, mutate_bytes: Bytes) -> bytes:
    """Safetensors with another header, another length of it, or other bytes."""
    (length,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    try:
        content = json.loads(data[8 : 8 + length])
    except ValueError:
        content = None
    if not isinstance(content, dict) or rng.random() < 0.2:
        return mutate_bytes(data)
    body = data[8 + length :]
    if rng.random() < 0.3:
        content, body = _one_tensor(rng)
    else:
        for _ in range(rng.choice((1, 1, 2, 3))):
            _change_tensor(content, rng)
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8) if rng.random() < 0.9 else b""
    said = rng.choice(_NUMBERS) % (1 << 64) if rng.random() < 0.05 else len(text)
    return struct.pack("<Q", said) + text + body


def _one_tensor(rng: random.Random) -> tuple[dict[str, Any], bytes]:
    """A header and a body that fit together, of any dtype and shape."""
    dtype, size = rng.choice(tuple(_DTYPES.items()))
    shape = [rng.choice((0, 1, 2, *_NUMBERS)) for _ in range(rng.choice((0, 1, 2, 4, 70)))]
    needed = min(math.prod(shape) * size, 1 << 10)
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, needed]}
    return {rng.choice(("w", "é")): tensor}, bytes(max(needed, 0))


def _change_tensor(content: dict[str, Any], rng: random.Random) -> None:
    tensors = [one for one in content.values() if isinstance(one, dict)]
    kind = rng.randrange(6)
    if not tensors or kind < 2:
        _change(content, rng)
    elif kind == 2:
        rng.choice(tensors)["dtype"] = rng.choice(tuple(_DTYPES))
    elif kind == 3:
        sizes = [rng.choice((0, 1, 2, *_NUMBERS)) for _ in range(rng.choice((0, 1, 2, 4, 40, 70)))]
        rng.choice(tensors)["shape"] = sizes
    elif kind == 4:
        rng.choice(tensors)["data_offsets"] = [rng.choice(_NUMBERS), rng.choice(_NUMBERS)]
    else:
        content[rng.choice(_TEXTS)] = {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
