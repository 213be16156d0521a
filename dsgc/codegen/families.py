"""Which kernels are compiled together. A family is one shared object: a few kernels for given block
sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsgc.codegen.target import CpuTarget
from dsgc.codegen.tiles import (
    DENSE_BLOCK,
    NEURON_DEPTHS,
    NEURON_LANES,
    PLAIN_COLUMNS,
    RANKED_BLOCKS,
    ROW_LANES,
)

__all__ = [
    "Family",
    "blocked",
    "convolution",
    "dense",
    "dense_search",
    "elementwise",
    "grouped_convolution",
    "linear",
    "linear_pairs",
    "lists",
    "moves",
    "neuron",
    "norms",
    "plain_convolution",
    "residual",
    "rows",
]


@dataclass(frozen=True)
class Family:
    """A set of kernels compiled into one library.

    Attributes:
        name: unique for what ``functions`` returns, apart from the target.
        functions: target -> the TVMScript functions; TVM is imported only when it is called.
        files: sources outside dsgc that they are written in: compiled anew when one changes.
    """

    name: str
    functions: Callable[[CpuTarget], list[Any]]
    files: tuple[Path, ...] = ()


@functools.cache
def lists() -> Family:
    """Selections: lists by block, bitmasks, ranks; and pooling's merge."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import lists, pooling, selection

        return [
            lists.list_slots(),
            lists.strip_edges(),
            lists.expand_bits(),
            lists.set_bits(),
            lists.mark_blocks(),
            selection.mark_above(),
            pooling.count_union(),
            selection.rank_few(),
            *(selection.rank_winners(capacity) for capacity in RANKED_BLOCKS),
            *(selection.rank_bits(capacity) for capacity in RANKED_BLOCKS),
        ]

    return Family("lists", functions)


@functools.cache
def blocked(b: int) -> Family:
    """What works on one packed tensor of blocks of ``b``."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import activation, scores, search, statistics

        block_scores = scores.byte_scores if target.byte_dots else scores.float_scores
        return [
            activation.activate(b),
            activation.activate_backward(b),
            statistics.channel_sums(b),
            statistics.batch_affine(b),
            statistics.batch_affine_backward(b),
            activation.pack(b),
            activation.unpack(b),
            activation.unpack_groups(b),
            *_pooling(b),
            search.project(b, 2 if target.lanes == 16 else 1),
            block_scores(b, target.score_members, target.score_columns),
        ]

    return Family(f"blocked_{b}", functions)


def _pooling(b: int) -> list[Any]:
    from dsgc.codegen.kernels import neuron_pooling, pooling

    modes = ("max", "avg")
    if b == 1:
        forward = [neuron_pooling.pool_neurons(mode) for mode in modes]
        backward = [neuron_pooling.pool_neurons_backward(mode) for mode in modes]
        return [neuron_pooling.count_neurons(), *forward, *backward]
    forward = [pooling.pool(b, mode) for mode in modes]
    return [*forward, *(pooling.pool_backward(b, mode) for mode in modes)]


@functools.cache
def dense_search() -> Family:
    """The search's part that does not depend on a block size."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import search

        return [
            search.project_dense(target.members),
            search.round_rows(target.byte_dots),
            search.row_bytes(target.byte_dots),
        ]

    return Family("search", functions)


@functools.cache
def residual(b: int) -> Family:
    """Sums of dense maps and packed branches of blocks of ``b``."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import residual

        return [residual.residual_add(b), residual.residual_add_backward(b)]

    return Family(f"residual_{b}", functions)


@functools.cache
def convolution(bi: int, bo: int) -> Family:
    """Packed input of blocks of ``bi`` into output blocks of ``bo`` (weights of bi=1 come with
    ``dense``).
    """

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import convolution, weights

        own = [] if bi == 1 else weights.all_forms(bi, bo)
        held = target.held(max(bi, bo))
        return [
            convolution.packed_convolution(bi, bo, target.held(bo), target.moves_together),
            convolution.packed_weight_gradient(bi, bo, held, target.moves_together),
            *own,
        ]

    return Family(f"convolution_{bi}_{bo}", functions)


@functools.cache
def convolution_in_place(bi: int, bo: int) -> Family:
    """Packed input of blocks of ``bi`` into output blocks of ``bo``, by weights as they are."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import convolution

        how = (target.held(bo), target.moves_together)
        return [convolution.packed_convolution(bi, bo, *how, in_place=True)]

    return Family(f"convolution_in_place_{bi}_{bo}", functions)


@functools.cache
def dense(bo: int) -> Family:
    """Dense input into output blocks of ``bo``."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import dense_source, weights

        return [
            dense_source.dense_convolution(bo, target.members),
            dense_source.dense_weight_gradient(bo, target.held(DENSE_BLOCK)),
            dense_source.dense_data_gradient(bo, target.held(DENSE_BLOCK)),
            *weights.all_forms(1, bo),
        ]

    return Family(f"dense_{bo}", functions)


@functools.cache
def dense_in_place(bo: int) -> Family:
    """Dense input into output blocks of ``bo``, by weights as they are."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import dense_source

        return [dense_source.dense_convolution(bo, target.members, in_place=True)]

    return Family(f"dense_in_place_{bo}", functions)


@functools.cache
def linear(bo: int) -> Family:
    """Linear layers of few rows into output blocks of ``bo``."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import linear

        outputs = target.held(ROW_LANES) // 2
        return [
            linear.row_products(bo, outputs),
            linear.row_data_gradient(bo, target.held(ROW_LANES)),
            linear.row_weight_gradient(bo, outputs),
        ]

    return Family(f"linear_{bo}", functions)


@functools.cache
def linear_pairs(bi: int, bo: int) -> Family:
    """Linear layers of few rows from packed blocks of ``bi`` into output blocks of ``bo``."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import linear_pairs

        held = max(1, target.held(bi) // 2)
        return [
            linear_pairs.pair_products(bi, bo, held),
            linear_pairs.pair_data_gradient(bi, bo, held),
            linear_pairs.pair_weight_gradient(bi, bo, held),
        ]

    return Family(f"linear_pairs_{bi}_{bo}", functions)


@functools.cache
def plain_convolution() -> Family:
    """Dense convolutions: the first one of a network, and all in programs without torch."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels.plain_convolution import plain_convolution

        sums = target.score_members * target.score_columns
        return [plain_convolution(c, max(2, sums // c)) for c in PLAIN_COLUMNS]

    return Family("plain_convolution", functions)


@functools.cache
def grouped_convolution() -> Family:
    """Dense convolutions in groups, in programs without torch."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels.plain_convolution import grouped_convolution

        sums = target.score_members * target.score_columns
        return [grouped_convolution(c, max(2, sums // c)) for c in PLAIN_COLUMNS]

    return Family("grouped_convolution", functions)


@functools.cache
def neuron() -> Family:
    """Dense rows into single neurons (block 1)."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import neuron, weights

        return [
            *(neuron.neuron_convolution(depth) for depth in NEURON_DEPTHS),
            *(neuron.neuron_weight_gradient(depth) for depth in NEURON_DEPTHS),
            *(neuron.neuron_data_gradient(depth) for depth in NEURON_DEPTHS),
            *weights.all_forms(NEURON_LANES, 1),
        ]

    return Family("neuron", functions)


@functools.cache
def rows() -> Family:
    """Dense maps in programs that run without torch."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import rows

        return [
            rows.rows_of_maps(),
            rows.maps_of_rows(),
            rows.finish_rows(),
            *(rows.combine_rows(name) for name in sorted(rows.COMBINATIONS)),
            rows.pool_rows("max"),
            rows.pool_rows("avg"),
            rows.take_rows(),
            rows.group_rows(),
            rows.row_pointers(),
            rows.equal_rows(),
            rows.every_block(),
            rows.close_rows(),
        ]

    return Family("rows", functions)


@functools.cache
def moves() -> Family:
    """Interpolated pixels and reordered channels in programs that run without torch."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import moves

        return [moves.blend_rows(), moves.gather_rows()]

    return Family("moves", functions)


@functools.cache
def norms() -> Family:
    """Layer norms in programs that run without torch."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import norms

        return [norms.norm_rows()]

    return Family("norms", functions)


@functools.cache
def maps() -> Family:
    """Pooling of dense maps that are still to be activated."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import map_pooling

        return [map_pooling.max_pool_map(), map_pooling.max_pool_map_backward()]

    return Family("maps", functions)


@functools.cache
def skipping() -> Family:
    """Linear layers of very few samples in programs that run without torch."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import skipping

        return [skipping.nonzero_columns(), skipping.skip_products()]

    return Family("skipping", functions)


@functools.cache
def elementwise() -> Family:
    """Arithmetic of dense maps in programs that run without torch, softmax and concatenation."""

    def functions(target: CpuTarget) -> list[Any]:
        from dsgc.codegen.kernels import elementwise

        applied = [elementwise.apply(name) for name in sorted(elementwise.FUNCTIONS)]
        return [
            *applied,
            elementwise.softmax(),
            elementwise.join(),
            elementwise.filter_rows(),
        ]

    return Family("elementwise", functions)
