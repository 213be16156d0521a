"""Balanced clustering of channels by how alike they fire."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["block_sizes", "cluster", "kept_share"]

_ROUNDS = 40  # at most; fewer as a rule
_SETTLED = 0.01  # part of the channels: a round with fewer swaps is the last
_LEAST_GAIN = 1e-4  # of a swap, in units of one cosine


def block_sizes(channels: int, block: int) -> list[int]:
    """Channels of every block; the last block may have fewer."""
    return [min(block, channels - first) for first in range(0, channels, block)]


def cluster(fired: Tensor, block: int) -> Tensor:
    """An order of channels in which those of a block fire at the same positions.

    Starts from random blocks and swaps pairs of channels between blocks, the best partner for each
    channel in turn, as long as the sum of the cosines inside blocks grows.

    Args:
        fired: activations [positions, C], none negative.
        block: channels of a block; the last one may have fewer.

    Returns:
        int64 [C]: the channel that comes first, second, and so on. The same for the same input.
    """
    channels = fired.shape[1]
    unit = fired.float() / fired.float().norm(dim=0).clamp(min=1e-12)
    alike = unit.T @ unit
    alike.fill_diagonal_(0.0)
    random = torch.Generator().manual_seed(0)
    sizes = torch.tensor(block_sizes(channels, block))
    member = torch.arange(len(sizes)).repeat_interleave(sizes)
    member = member[torch.randperm(channels, generator=random)]
    for _ in range(_ROUNDS):
        order = torch.randperm(channels, generator=random).tolist()
        if _swap_all(alike, member, order, len(sizes)) <= _SETTLED * channels:
            break
    return torch.argsort(member, stable=True)


def _swap_all(alike: Tensor, member: Tensor, order: Sequence[int], blocks: int) -> int:
    """One round; changes `member`, the block of every channel. Returns the number of swaps."""
    # Of every block and channel the cosines' sum, and of every channel that of its own block.
    to_block = torch.nn.functional.one_hot(member, blocks).float().T @ alike
    own = to_block.gather(0, member[None])[0]
    swaps = 0
    for i in order:
        mine = int(member[i])
        # Both leave their block and join the other's, without the one that went.
        gain = to_block[:, i].contiguous()[member] - own[i] - 2.0 * alike[i]
        gain += to_block[mine] - own
        gain[member == mine] = 0.0
        partner = int(gain.argmax())
        if gain[partner] <= _LEAST_GAIN:
            continue
        theirs = int(member[partner])
        member[i], member[partner] = theirs, mine
        change = alike[partner] - alike[i]
        to_block[mine] += change
        to_block[theirs] -= change
        for block in (mine, theirs):
            inside = member == block
            own[inside] = to_block[block][inside]
        swaps += 1
    return swaps


def kept_share(fired: Tensor, block: int, winners: int) -> float:
    """The part of all activation that lies in the `winners` best blocks of each position.

    Args:
        fired: activations [positions, C], none negative.
    """
    total = float(fired.sum())
    if total == 0.0:
        return 1.0
    missing = -fired.shape[1] % block
    padded = torch.nn.functional.pad(fired, (0, missing))
    sums = padded.view(len(fired), padded.shape[1] // block, block).sum(2)
    return float(sums.topk(min(winners, sums.shape[1]), dim=1).values.sum()) / total
