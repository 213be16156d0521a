"""Selections cannot be found a second time: activation checkpointing is refused, not got wrong."""

from __future__ import annotations

import torch

from dsgc.errors import UnsupportedError

__all__ = ["refuse_recomputation"]


def refuse_recomputation(what: str) -> None:
    """Raise if this runs within a backward pass, where activation checkpointing runs forward again.

    Projections, running statistics and the step have moved on since the first forward, so other
    blocks would be selected, and the gradients would be those of another network.

    Args:
        what: runs, in training mode: "the sparse module", or a layer.

    Raises:
        UnsupportedError: a backward pass is going on.
    """
    if torch._C._current_graph_task_id() == -1:
        return
    raise UnsupportedError(
        f"{what} runs in training mode within a backward pass: activation checkpointing around "
        "sparse layers is not supported, because they would select other blocks than the first "
        "time. Take torch.utils.checkpoint off them (sparse layers keep little for the backward "
        "pass: see sparse.report) and leave it around dense parts only"
    )
