"""Where the time of a call went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsgc_runtime.manifest import Manifest, views_of

__all__ = ["LayerProfile", "by_layer"]


@dataclass(frozen=True)
class LayerProfile:
    """What a layer took in one call.

    Attributes:
        name: of the layer in the original model.
        seconds: of all its kernels.
        share: of the whole call, 0 to 1.
        sparsity: the part of its neurons that it left out; None for what selects nothing.
        bytes: of the buffers that its kernels write and read.
    """

    name: str
    seconds: float
    share: float
    sparsity: float | None
    bytes: int


def by_layer(
    manifest: Manifest, sizes: list[int], seconds: Mapping[int, float], whole: float
) -> list[LayerProfile]:
    """Seconds of instructions added up by layer, in the order in which layers begin.

    Args:
        sizes: bytes of every buffer.
        seconds: by the number of the instruction.
        whole: seconds of the call.
    """
    spent: dict[str, float] = {}
    touched: dict[str, set[int]] = {}
    for number, step in enumerate(manifest.program):
        spent[step.layer] = spent.get(step.layer, 0.0) + seconds.get(number, 0.0)
        buffers = touched.setdefault(step.layer, set())
        buffers.update(view.storage for view in views_of(step) if isinstance(view.storage, int))
    sparsity = {layer.name: layer.sparsity for layer in manifest.layers if layer.sparse}
    return [
        LayerProfile(
            name,
            time,
            time / whole if whole > 0 else 0.0,
            sparsity.get(name),
            sum(sizes[number] for number in touched[name]),
        )
        for name, time in spent.items()
    ]
