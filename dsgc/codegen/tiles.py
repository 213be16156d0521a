"""Sizes that kernels and the code that calls them must agree on."""

from __future__ import annotations

__all__ = [
    "BITS",
    "DENSE_BLOCK",
    "FEW_BLOCKS",
    "FEW_ROWS",
    "GROUP",
    "NEURON_DEPTHS",
    "NEURON_LANES",
    "PAIRS_BELOW",
    "PAIR_BLOCKS",
    "PAIR_STRIP",
    "PLAIN_COLUMNS",
    "RANKED_BLOCKS",
    "ROW_LANES",
    "ROW_STRIP",
    "SCORE_CHANNELS",
    "SKIP_SAMPLES",
    "SKIP_STRIP",
    "VECTOR",
    "gradient_block",
    "ranking_kernel",
    "suits_few_rows",
]

VECTOR = 16  # lanes that kernels of the search (whose rows are whole ones) and of sorting work on
BITS = 32  # blocks of a word of a position's bitmask
DENSE_BLOCK = 16  # channels into which a dense map is cut when packed kernels run on it
PLAIN_COLUMNS = (64, 32, 16)  # outputs of a register tile of a dense convolution
GROUP = 8  # blocks of a dense input, at most, whose gradient a task makes
NEURON_LANES = 16  # vector of a neuron-wise dot product
NEURON_DEPTHS = (1, 2, 4, 8)  # such vectors of channels that neuron-wise kernels group
RANKED_BLOCKS = (128, 1024)  # most scores that a ranking kernel takes: on the stack, on the heap
FEW_BLOCKS = 32  # most scores of a position for which a bit each fits a lane
FEW_ROWS = 256  # samples up to which a linear layer reads its weights as they are
ROW_LANES = 16  # inputs of a linear layer of few rows that are a vector
ROW_STRIP = 16  # such vectors that a task takes at a time
PAIR_BLOCKS = (8, 16, 32)  # block sizes that kernels of pairs of linear layers take
PAIRS_BELOW = 0.45  # part of its input's blocks present below which it takes pairs
PAIR_STRIP = 256  # inputs of a linear layer of few rows whose weights a task copies at a time
SKIP_SAMPLES = 4  # samples up to which skipping zero inputs beats reading weights once for all
SKIP_STRIP = 64  # outputs of a linear layer whose weights for one input lie together
SCORE_CHANNELS = 64  # projected weights are padded to whole register tiles of any target


def suits_few_rows(rows: int, inputs: int, outputs: int, block: int) -> bool:
    """Whether the kernels of linear layers of few rows take a layer of this size."""
    return rows <= FEW_ROWS and inputs % ROW_LANES == 0 and outputs % block == 0


def gradient_block(bi: int, bo: int) -> tuple[bool, int, int]:
    """How the packed kernels see a block of a weight's gradient: whether its vectors are of inputs,
    how many there are, and how long they are.
    """
    by_input = bi >= bo
    return by_input, min(bi, bo), max(bi, bo)


def ranking_kernel(blocks: int, bits: bool = False) -> str | None:
    """The kernel that ranks so many scores a position, into a bitmask if ``bits``; None if there
    are too many.
    """
    if blocks <= FEW_BLOCKS and not bits:
        return "rank_few"
    capacity = next((most for most in RANKED_BLOCKS if blocks <= most), None)
    return None if capacity is None else f"rank_{'bits' if bits else 'winners'}_{capacity}"
