"""Linear layers of few rows: through the whole input, or through pairs of present blocks."""

from __future__ import annotations

from torch import Tensor

from dsgc.codegen.cpu.layout import Selection
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.linear import row_lists, row_products, row_weight_gradient
from dsgc.codegen.cpu.linear_pairs import pair_products, pair_weight_gradient, takes_pairs
from dsgc.ops.spec import Activation

__all__ = ["few_rows_products", "few_rows_weight_gradient"]


def few_rows_products(
    libraries: Libraries,
    source: Activation,
    weight: Tensor,
    bias: Tensor | None,
    target: Selection,
    block: int,
) -> Tensor:
    """The selected blocks of every sample: [slots, block]."""
    lists = row_lists(libraries, weight, target, block)
    products = pair_products if takes_pairs(source, block) else row_products
    return products(libraries, source, weight, bias, lists, block)


def few_rows_weight_gradient(
    libraries: Libraries, grad: Tensor, source: Activation, weight: Tensor, target: Selection
) -> Tensor:
    """Like ``weight``, from ``grad`` [slots, block]; zero for blocks that no sample chose."""
    block = grad.shape[1]
    lists = row_lists(libraries, weight, target, block)
    gradient = pair_weight_gradient if takes_pairs(source, block) else row_weight_gradient
    return gradient(libraries, grad, source, weight, lists)
