"""Selectors: which blocks of a layer's output are worth computing, for each input."""

from dsgc.select.packed_selection import PackedSelection
from dsgc.select.projection import (
    all_equal,
    fingerprint,
    leading_projection,
    mark_of,
    project_weight,
    reduced_dimension,
    round_weight,
    ternary_projection,
)
from dsgc.select.recomputation import refuse_recomputation
from dsgc.select.selector import Selector

__all__ = [
    "PackedSelection",
    "Selector",
    "all_equal",
    "fingerprint",
    "leading_projection",
    "mark_of",
    "project_weight",
    "reduced_dimension",
    "refuse_recomputation",
    "round_weight",
    "ternary_projection",
]
