"""The passes in order. Read this page first.

A traced graph goes through three stages:

1. `ANALYSIS` looks: shapes are noted (`propagate_shapes` runs before, it needs inputs), every
   layer gets its decision. Between this stage and the next, `balance_winners` turns sparsities
   into whole numbers of winners for the network as a whole.
2. `SEMANTIC` rewrites sparse layers to select -> masked layer -> masked norm, on dense tensors.
   The result defines what the model computes.
3. `LOWERING` makes a second graph from it, on packed values, bound to the kernels of a backend.

After each pass the graph is verified: it must be well formed, and what the pass promises (the
checks beside it) must hold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from dsgc.passes.choose_kernels import choose_kernels
from dsgc.passes.choose_layers import choose_layers
from dsgc.passes.context import Context
from dsgc.passes.fix_random_order import fix_random_order
from dsgc.passes.flatten_linear import flatten_linear
from dsgc.passes.functionalize import functionalize
from dsgc.passes.insert_double_mask import insert_double_mask
from dsgc.passes.insert_selection import insert_selection
from dsgc.passes.lower_dense_linear import lower_dense_linear
from dsgc.passes.lower_to_packed import lower_to_packed
from dsgc.passes.mark_layers import mark_layers
from dsgc.passes.prefer_channels_last import prefer_channels_last
from dsgc.passes.share_pool_masks import share_pool_masks
from dsgc.passes.verify import (
    Check,
    every_layer_decided,
    everything_lowered,
    layers_marked,
    masks_are_double,
    one_namespace,
    selections_inserted,
    shapes_known,
    verify,
)

__all__ = [
    "ANALYSIS",
    "LOWERING",
    "PREPARATION",
    "SEMANTIC",
    "Observer",
    "Pass",
    "run_passes",
    "write_to",
]

Observer = Callable[[str, fx.GraphModule], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """One rewriting step: what must hold `before` it, and what it promises `after`."""

    run: Callable[[fx.GraphModule, Context], fx.GraphModule]
    before: tuple[Check, ...] = ()
    after: tuple[Check, ...] = ()

    @property
    def name(self) -> str:
        """The verb the pass is named by."""
        return self.run.__name__


PREPARATION = (Pass(functionalize),)
ANALYSIS = (
    Pass(choose_layers, before=(shapes_known,), after=(every_layer_decided,)),
    Pass(share_pool_masks, before=(every_layer_decided,)),
    Pass(mark_layers, before=(every_layer_decided,), after=(layers_marked,)),
)
SEMANTIC = (
    Pass(prefer_channels_last, before=(shapes_known,)),
    Pass(fix_random_order, before=(every_layer_decided,)),
    Pass(insert_selection, before=(every_layer_decided,), after=(selections_inserted,)),
    Pass(insert_double_mask, before=(selections_inserted,), after=(masks_are_double,)),
    Pass(flatten_linear, after=(selections_inserted, masks_are_double)),
)
LOWERING = (
    Pass(
        lower_to_packed, before=(selections_inserted, masks_are_double), after=(everything_lowered,)
    ),
    Pass(lower_dense_linear, after=(everything_lowered,)),
    Pass(choose_kernels, before=(everything_lowered,), after=(one_namespace,)),
)


def run_passes(
    gm: fx.GraphModule,
    context: Context,
    passes: tuple[Pass, ...],
    observe: Observer | None = None,
) -> fx.GraphModule:
    """Run `passes` over `gm`, verifying between them.

    `observe` gets the name of every pass and the graph after it, which the next pass may change.

    Raises:
        VerificationError: a pass broke its promise.
    """
    for one in passes:
        begun = time.perf_counter()
        verify(f"before {one.name}", gm, context, one.before)
        gm = one.run(gm, context)
        verify(one.name, gm, context, one.after)
        spent = 1e3 * (time.perf_counter() - begun)
        _log.info("pass %s: %d nodes, %.1f ms", one.name, len(gm.graph.nodes), spent)
        if observe is not None:
            observe(one.name, gm)
    return gm


def write_to(folder: Path) -> Observer:
    """Writes the graph after every pass to a numbered text file in `folder`."""

    def write(name: str, gm: fx.GraphModule) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        count = len(list(folder.glob("*.txt")))
        (folder / f"{count:03d}_{name}.txt").write_text(f"{gm.graph}\n\n{gm.code}")

    return write
