"""Whether a program stays within its memory: every tensor of every call, for one batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dsgc_runtime.errors import DamagedArtifactError, shown
from dsgc_runtime.manifest import DTYPES, Manifest, Read, View, views_of
from dsgc_runtime.sizes import LIMIT, Size, evaluate

if TYPE_CHECKING:
    from dsgc_runtime.archive import Archive

__all__ = ["buffer_sizes", "check_archive", "volume"]

Constants = Mapping[str, NDArray[Any]]


def check_archive(archive: Archive) -> None:
    """Check a program for the batch that it was exported with, before any of its code is loaded.

    Raises:
        DamagedArtifactError: it has no inputs or outputs, or a tensor does not fit into its memory.
    """
    manifest = archive.manifest
    if not manifest.inputs or not manifest.outputs:
        raise DamagedArtifactError("it has no inputs or no outputs")
    buffer_sizes(manifest, archive.constants, max(1, manifest.example))


def buffer_sizes(manifest: Manifest, constants: Constants, batch: int) -> list[int]:
    """Bytes of every buffer for batches of one size, every tensor being checked against them.

    Counts that only a call knows are taken at their largest.

    Args:
        constants: by name.
        batch: samples of a call, at least one.

    Raises:
        DamagedArtifactError: a tensor does not fit into its memory.
    """
    given = {"batch": batch}
    known = dict(given)
    sizes = [evaluate(buffer.bytes, given) for buffer in manifest.buffers]
    there: dict[int | str, int] = {name: array.nbytes for name, array in constants.items()}
    there.update(enumerate(sizes))
    for step in manifest.program:
        for view in views_of(step):
            _check_fits(view, known, there)
        if isinstance(step, Read):
            known[step.name] = evaluate(step.most, given)
    _check_ports(manifest, given, sizes)
    return sizes


def _check_ports(manifest: Manifest, given: Mapping[str, int], sizes: Sequence[int]) -> None:
    """Inputs and outputs have buffers of their own, which they fill."""
    taken: set[int | str] = set()
    for port in (*manifest.inputs, *manifest.outputs):
        storage, name = port.view.storage, shown(port.name)
        if storage in taken:
            raise DamagedArtifactError(f"the buffer of {name} is another's")
        taken.add(storage)
        if volume(port.view.shape, given) * DTYPES[port.view.dtype] != sizes[int(storage)]:
            raise DamagedArtifactError(f"the buffer of {name} is not of its size")


def _check_fits(view: View, known: Mapping[str, int], there: Mapping[int | str, int]) -> None:
    """A tensor against the bytes that are there of every buffer and constant."""
    try:
        needed = volume(view.shape, known) * DTYPES[view.dtype]
    except KeyError as error:
        raise DamagedArtifactError(f"{error} is used before it is known") from None
    held = there[view.storage]
    if needed > held:
        raise DamagedArtifactError(
            f"a tensor of {needed} bytes lies beyond the {held} of {shown(view.storage)}"
        )


def volume(shape: Sequence[Size], known: Mapping[str, int]) -> int:
    """Elements of a tensor of `shape`.

    Raises:
        DamagedArtifactError: that is beyond all bounds.
    """
    total = bound = 1
    for extent in shape:
        size = evaluate(extent, known)
        total *= size
        # Also of a tensor that is empty: who makes one multiplies its other extents.
        bound *= max(1, size)
        if bound >= LIMIT:
            raise DamagedArtifactError(f"a tensor of {bound} elements is beyond all bounds")
    return total
