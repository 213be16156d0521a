"""The modes around a piece of code that torch.fx records nothing of: gradients, autocast, hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

__all__ = ["Ambient", "ambient", "opposite", "ordinary"]

_DEVICES = ("cpu", "cuda")


class Ambient(NamedTuple):
    """The modes at one moment."""

    gradients: tuple[bool, bool]
    autocast: tuple[tuple[bool, torch.dtype], ...]
    saving: Any

    def difference(self, now: Ambient) -> str:
        """What somebody changed on the way to `now`, in words; empty if nothing."""
        if self.gradients != now.gradients:
            return "changes the grad mode"
        if self.autocast != now.autocast:
            return "changes autocast"
        if self.saving != now.saving:
            return "uses torch.utils.checkpoint or other saved-tensor hooks"
        return ""


def ambient() -> Ambient:
    """The modes of this thread now."""
    return Ambient(
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES),
        # torch has no public way to ask for these.
        torch._C._autograd._top_saved_tensors_default_hooks(False),
    )


@contextmanager
def ordinary() -> Iterator[None]:
    """Within, gradients are on and autocast is off; what was comes back whatever the body does."""
    with torch.inference_mode(False), _modes(gradients=True, autocast=False):
        yield


@contextmanager
def opposite() -> Iterator[None]:
    """Within, gradients are off and autocast is on."""
    with _modes(gradients=False, autocast=True):
        yield


@contextmanager
def _modes(gradients: bool, autocast: bool) -> Iterator[None]:
    before = ambient()
    caching = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        for device in _DEVICES:
            torch.set_autocast_enabled(device, autocast)
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)
        for device, (enabled, dtype) in zip(_DEVICES, before.autocast, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
