"""The sources of kernels that an inspection page shows."""

from __future__ import annotations

from collections.abc import Iterable

from dsgc.errors import ConfigError, KernelError
from dsgc.inspect.page_data import PageSource

__all__ = ["sources_of"]

_LANGUAGES = {"tvmscript": "TVMScript", "asm": "assembly"}


def sources_of(kernels: Iterable[str]) -> tuple[PageSource, ...]:
    """What kernels are made of, for this machine; left out are those that dsgc does not know here.

    Every kernel is generated anew, which takes a fraction of a second each.
    """
    wanted = sorted(set(kernels))
    if not wanted:
        return ()
    from dsgc.codegen.sources import kernel_source

    found: list[PageSource] = []
    for kernel in wanted:
        for language, title in _LANGUAGES.items():
            try:
                found.append(PageSource(kernel, title, kernel_source(kernel, language)))
            except (ConfigError, KernelError):
                break  # written by another version, or TVM is not here
    return tuple(found)
