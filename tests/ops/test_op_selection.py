"""drs_scores, select_winners and select_above against literal computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dsgc.ops import mask_to_selection, selection_to_mask
from dsgc.select import leading_projection, project_weight, round_weight, ternary_projection
from tests.ops.cases import Convolution, Namespace, Pair, convolutions


def literal_winners(scores: torch.Tensor, winners: int, size: Pair, tile: Pair) -> torch.Tensor:
    """bool [N, blocks, H, W], tile by tile."""
    height, width = size
    blocks = scores.shape[1]
    maps = scores.view(-1, height, width, blocks)
    mask = torch.zeros(maps.shape, dtype=torch.bool)
    for n in range(maps.shape[0]):
        for h in range(0, height, tile[0]):
            for w in range(0, width, tile[1]):
                window = (n, slice(h, h + tile[0]), slice(w, w + tile[1]))
                total = maps[window].sum((0, 1)).tolist()
                total = [float("inf") if v != v else v for v in total]
                best = sorted(range(blocks), key=lambda b: (-total[b], b))[:winners]
                for b in best:
                    mask[(*window, b)] = True
    return mask.permute(0, 3, 1, 2)


@settings(max_examples=60)
@given(
    batch=st.integers(0, 3),
    blocks=st.integers(1, 40),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    tile=st.sampled_from(((1, 1), (2, 2), (3, 2))),
    share=st.floats(0, 1),
    bits=st.booleans(),
    seed=st.integers(0, 99),
)
def test_select_winners(
    namespace: Namespace, batch: int, blocks: int, size: Pair, tile: Pair, share: float,
    bits: bool, seed: int,
) -> None:  # fmt: skip
    make = torch.Generator().manual_seed(seed)
    # Small whole numbers: many ties, and sums that are the same in any order.
    shape = (batch * size[0] * size[1], blocks)
    scores = torch.randint(-3, 4, shape, generator=make).to(namespace.dtype)
    winners = 1 + int(share * (blocks - 1))
    index, rowptr = namespace.ops.select_winners(scores, winners, size, tile, bits)
    mask = selection_to_mask(index, rowptr, blocks, *size)
    assert torch.equal(mask, literal_winners(scores, winners, size, tile))
    assert index.dtype == (torch.uint8 if bits else torch.int32)
    assert torch.equal(rowptr, torch.arange(shape[0] + 1, dtype=torch.int32) * winners)


def test_nan_wins(namespace: Namespace) -> None:
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[1.0, nan, 2.0, inf], [-inf, -inf, -inf, nan]], dtype=namespace.dtype)
    index, _ = namespace.ops.select_winners(scores, 2, (1, 2), (1, 1), False)
    assert index.tolist() == [1, 3, 0, 3]


@pytest.mark.parametrize("winners", [0, 4])
def test_impossible_winners_are_refused(winners: int) -> None:
    with pytest.raises(ValueError, match="winners of 3 blocks"):
        torch.ops.dsgc.select_winners(torch.zeros(4, 3), winners, (2, 2), (1, 1), False)


@settings(max_examples=40)
@given(
    batch=st.integers(0, 3),
    positions=st.integers(1, 6),
    blocks=st.integers(1, 12),
    strict=st.booleans(),
    bits=st.booleans(),
    seed=st.integers(0, 99),
)
def test_select_above(
    namespace: Namespace, batch: int, positions: int, blocks: int, strict: bool, bits: bool,
    seed: int,
) -> None:  # fmt: skip
    make = torch.Generator().manual_seed(seed)
    shape = (batch * positions, blocks)
    scores = torch.randint(-3, 4, shape, generator=make).to(namespace.dtype)
    threshold = torch.randint(-3, 4, (batch,), generator=make).to(namespace.dtype)
    index, rowptr = namespace.ops.select_above(scores, threshold, strict, bits)
    mask = selection_to_mask(index, rowptr, blocks, positions, 1)
    limit = threshold.repeat_interleave(positions).view(-1, 1)
    flat = (scores > limit) & (scores != 0) if strict else scores >= limit
    assert torch.equal(mask.permute(0, 2, 3, 1).reshape(shape), flat)


def _check_rounded(
    namespace: Namespace, case: Convolution, dense: torch.Tensor, projection: torch.Tensor,
    projected: torch.Tensor, unit: torch.Tensor, offset: torch.Tensor, scores: torch.Tensor,
) -> None:  # fmt: skip
    """The pixel form, sample by sample; a level that lies between two may be either of them."""
    expected: list[torch.Tensor] = []
    for image in dense:
        pixels = torch.einsum("chw,cd->dhw", image, projection.to(dense.dtype))
        step = float(pixels.abs().max()) / 127
        levels = (pixels / step).round() if step > 0 else pixels
        weight = projected[..., : case.neurons].to(dense.dtype).permute(2, 1, 0)
        weight = weight.reshape(case.neurons, -1, *case.kernel)
        estimate = F.conv2d(levels[None], weight, None, *case.geometry)
        estimate = estimate * unit[: case.neurons].view(-1, 1, 1) * step + offset.view(-1, 1, 1)
        rows = estimate.permute(0, 2, 3, 1).reshape(-1, case.neurons)
        if case.block > 1:
            split = torch.split(rows.relu(), case.block, 1)
            rows = torch.stack([part.sum(1) for part in split], 1)
        found = scores[len(expected) * len(rows) : (len(expected) + 1) * len(rows)]
        off = (found - rows).abs()
        slack = 2 * 127 * step * float(unit.max()) * case.block
        assert float(off.max()) <= slack + 1e-6
        exact = (off <= 1e-4 * (1 + rows.abs().max())).to(torch.float64)
        assert float(exact.mean()) > 0.9
        expected.append(rows)
    assert len(scores) == sum(len(rows) for rows in expected)


@settings(max_examples=60)
@given(
    case=convolutions(max_kernel=3), window=st.booleans(), depth=st.sampled_from((1, 5, 8, 20, 90)),
    leading=st.booleans(), moved=st.booleans(),
)  # fmt: skip
def test_drs_scores(
    namespace: Namespace, case: Convolution, window: bool, depth: int, leading: bool, moved: bool
) -> None:
    source = case.source.build(namespace.dtype)
    weight = case.parameters(namespace.dtype)[0].detach()
    taps = case.kernel[0] * case.kernel[1]
    rows = case.source.channels * (taps if window else 1)
    projection = ternary_projection(rows, depth, torch.Generator().manual_seed(0))
    if leading:
        projection = leading_projection(weight, min(rows, depth), window)
    offset = torch.linspace(-1, 1, case.neurons, dtype=namespace.dtype)
    projected = project_weight(weight, projection, window)
    unit = None
    if not window:
        projected, unit = round_weight(projected)
    scores = namespace.ops.drs_scores(
        *source.arguments(namespace.ops), projection, projected, unit, offset if moved else None,
        case.neurons, case.block, case.kernel, *case.geometry,
    )  # fmt: skip
    assert not scores.requires_grad
    offset = offset if moved else torch.zeros_like(offset)
    if unit is not None:
        _check_rounded(
            namespace, case, source.dense().detach(), projection, projected, unit, offset, scores
        )
        return
    # x P P^T W: the estimate is a convolution with the weight sent through the projection twice.
    square = projection.to(weight.dtype) @ projection.to(weight.dtype).t()
    effective = (weight.reshape(case.neurons, -1) @ square).view_as(weight)
    estimate = F.conv2d(source.dense().detach(), effective, offset, *case.geometry)
    rows_of = estimate.permute(0, 2, 3, 1).reshape(-1, case.neurons)
    expected = rows_of
    if case.block > 1:
        split = torch.split(rows_of.relu(), case.block, 1)
        expected = torch.stack([part.sum(1) for part in split], 1)
    namespace.check(scores, expected, "scores")


@pytest.mark.parametrize("packed", [False, True])
def test_a_projection_that_a_checkpoint_overwrites(packed: bool) -> None:
    """Kernels keep a form of the projection of their own: it must follow."""
    cpu, meant = Namespace.named("dsgc_cpu").ops, torch.ops.dsgc
    torch.manual_seed(0)
    x, size = torch.randn(2, 16, 5, 5), [16, 5, 5]
    chosen = mask_to_selection(torch.rand(2, 2, 5, 5) < 0.6, bits=False) if packed else (None, None)
    values = meant.pack(x, *chosen, 8) if packed else x
    weight = torch.randn(24, 16, 3, 3)
    projection = ternary_projection(16, 8, torch.Generator().manual_seed(0))
    for seed in (0, 1):
        projection.copy_(ternary_projection(16, 8, torch.Generator().manual_seed(seed)))
        projected, unit = round_weight(project_weight(weight, projection, False))
        arguments = (values, *chosen, None, None, "identity", size, projection, projected, unit)
        window = (None, 24, 8, [3, 3], [1, 1], [1, 1], [1, 1])
        expected = meant.drs_scores(*arguments, *window)
        torch.testing.assert_close(
            cpu.drs_scores(*arguments, *window),
            expected,
            rtol=0.05,
            atol=0.05 * float(expected.max()),
        )
