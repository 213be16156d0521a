"""How evenly the blocks of a layer are used."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["BlockLoad", "load_of"]

_LISTED = 8


@dataclass(frozen=True)
class BlockLoad:
    """The use of a layer's blocks over the positions of one call.

    Attributes:
        shares: for every block, the fraction of positions that selected it.
    """

    shares: tuple[float, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of blocks that were left out."""
        return 1.0 - sum(self.shares) / len(self.shares)

    @property
    def busiest(self) -> float:
        """The busiest block's share over the mean one; 1 is perfectly even."""
        mean = sum(self.shares) / len(self.shares)
        return max(self.shares) / mean if mean > 0 else 1.0

    @property
    def dead(self) -> tuple[int, ...]:
        """The blocks that no position selected."""
        return tuple(i for i, share in enumerate(self.shares) if share == 0.0)

    def dead_in_words(self) -> str:
        """Such as `blocks 3, 5 and 9 of 16`."""
        names = [str(i) for i in self.dead[:_LISTED]]
        if len(self.dead) > _LISTED:
            names = [*names[:-1], f"{len(self.dead) - _LISTED + 1} more"]
        listed = ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]
        return f"block{'s' if names[1:] else ''} {listed} of {len(self.shares)}"


def load_of(mask: Tensor) -> BlockLoad:
    """The load of a selection, bool [N, blocks, H, W]."""
    if mask.numel() == 0:
        return BlockLoad((0.0,) * max(1, mask.shape[1]))
    return BlockLoad(tuple(mask.float().mean((0, 2, 3)).tolist()))
