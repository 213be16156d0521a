"""Selectors: shapes and amounts, agreement of both forms, determinism, holding, state."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import dsgc
from dsgc.config import LayerSettings
from dsgc.ops import mask_to_selection, selection_to_mask
from dsgc.select import Selector, leading_projection, reduced_dimension, ternary_projection

SCOPES = ("position", "sample", "batch")
SELECTORS = ("svd", "drs", "oracle", "random")
SETTINGS = LayerSettings(
    name="features.3", sparsity=0.75, block=8, scope="position", selector="drs",
    projection="pixel", ranking="normalized", epsilon=0.5, reduced_dimension=None,
    bn_stats="active", share_pool=False, tile=(1, 1), seed=0,
)  # fmt: skip
ALL = [
    replace(SETTINGS, selector=selector, scope=scope, block=block, projection=projection)
    for selector, scope in itertools.product(SELECTORS, SCOPES)
    for block, projection in ((8, "pixel"), (1, "window"), (1, "pixel"), (16, "window"))
]


def conv_selector(settings: LayerSettings = SETTINGS, **options: Any) -> Selector:
    """A selector of a convolution 20 -> 40 with an uneven window, in float64."""
    torch.manual_seed(5)
    layer = nn.Conv2d(20, 40, (3, 2)).double()
    window = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    made = {"seed": 0, "kernel": (3, 2), "in_channels": 20, **window, **options}
    return Selector(layer, settings=settings, **made)


def _input(batch: int = 3) -> Tensor:
    make = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 20, 7, 6, generator=make, dtype=torch.float64)


def _packed(selector: Selector, x: Tensor) -> tuple[Tensor, Tensor]:
    """The packed form's selection for a dense x."""
    return selector.packed(x, None, None, None, None, "identity", x.shape[1:], torch.ops.dsgc)


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_both_forms_of_a_selection_agree(settings: LayerSettings) -> None:
    selector, x = conv_selector(settings), _input()
    mask = selector(x)
    assert mask.dtype == torch.bool
    assert mask.shape == (3, selector.blocks, 4, 4)
    assert selector.scores(x).shape == (3 * 16, selector.blocks)
    index, rowptr = _packed(selector, x)
    assert index.dtype == (torch.uint8 if settings.block == 1 else torch.int32)
    assert torch.equal(selection_to_mask(index, rowptr, selector.blocks, 4, 4), mask)
    if settings.scope == "position":
        assert (mask.sum(1) == selector.winners).all()
    if settings.scope == "sample":
        assert (mask.flatten(1).sum(1) == round(0.25 * selector.blocks * 16)).all()


@pytest.mark.parametrize("selector_name", SELECTORS)
def test_a_deferred_packed_input_is_read_through_its_activation(selector_name: str) -> None:
    selector = conv_selector(replace(SETTINGS, selector=selector_name))
    x, scale, shift = _input(), *torch.randn(2, 20, dtype=torch.float64)
    index, rowptr = mask_to_selection(torch.rand(3, 3, 7, 6) > 0.5, False)
    values = torch.ops.dsgc.pack(x, index, rowptr, 8)
    deferred = (values, index, rowptr, scale, shift, "affine_relu", (20, 7, 6))
    dense = torch.ops.dsgc.unpack(*deferred)
    found = selector.packed(*deferred, torch.ops.dsgc)
    assert torch.equal(selection_to_mask(*found, selector.blocks, 4, 4), selector(dense))


@pytest.mark.parametrize("settings", ALL[::3], ids=str)
def test_selection_is_deterministic(settings: LayerSettings) -> None:
    one, two = conv_selector(settings), conv_selector(settings)
    assert torch.equal(one(_input()), one(_input()))
    assert torch.equal(one(_input()), two(_input()))
    two.step = 1
    assert torch.equal(one(_input()), two(_input())) == (settings.selector != "random")


def test_projections_depend_on_seed_and_name_only() -> None:
    base = conv_selector().projection
    assert base is not None
    assert base.dtype == torch.int8
    for other in (conv_selector(seed=1), conv_selector(replace(SETTINGS, name="other"))):
        assert other.projection is not None
        assert not torch.equal(other.projection, base)
    torch.manual_seed(99)
    again = conv_selector().projection
    assert again is not None
    assert torch.equal(again, base)


def test_ternary_projection_has_the_published_frequencies() -> None:
    drawn = ternary_projection(400, 500, torch.Generator().manual_seed(0))
    share = [float((drawn == v).double().mean()) for v in (-1, 0, 1)]
    assert share == pytest.approx([1 / 6, 2 / 3, 1 / 6], abs=0.005)


@pytest.mark.parametrize(
    ("neurons", "epsilon", "expected"),
    [(64, 0.5, 199), (128, 0.5, 232), (256, 0.3, 616), (512, 0.9, 154), (1024, 0.7, 212)],
)
def test_reduced_dimension_is_the_published_one(
    neurons: int, epsilon: float, expected: int
) -> None:
    assert reduced_dimension(neurons, epsilon) == expected


@pytest.mark.parametrize("window", [True, False])
def test_leading_projection_keeps_nearly_what_the_best_one_keeps(window: bool) -> None:
    torch.manual_seed(0)
    strength = torch.logspace(0, -2, 30).view(30, 1, 1)
    mixing = torch.linalg.qr(torch.randn(30, 30))[0]
    weight = torch.einsum("cd,kdrs->kcrs", mixing, torch.randn(48, 30, 2, 2) * strength)
    weight[3, 4] = torch.nan  # one neuron that says nothing
    basis = leading_projection(weight, 6, window)
    torch.testing.assert_close(basis.t() @ basis, torch.eye(6), atol=1e-5, rtol=0)
    matrix = weight.flatten(1).t() if window else weight.transpose(0, 1).flatten(1)
    matrix = matrix.nan_to_num(0)
    kept = float((basis.t() @ matrix).square().sum())
    best = float(torch.linalg.svdvals(matrix)[:6].square().sum())
    assert 0.9 * best < kept <= best * 1.00001
    assert torch.equal(basis, leading_projection(weight, 6, window))


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d(40), nn.BatchNorm2d(40, affine=False)])
@pytest.mark.parametrize("block", [1, 8])
def test_with_all_dimensions_svd_ranks_as_the_oracle(
    norm: nn.BatchNorm2d | None, block: int
) -> None:
    found = []
    for name in ("svd", "oracle"):
        settings = replace(SETTINGS, selector=name, reduced_dimension=1000, block=block)
        selector = conv_selector(settings)
        if norm is not None:
            norm = norm.double()
            for i, value in enumerate((norm.running_mean, norm.running_var, norm.weight)):
                if value is not None:
                    value.data.copy_(torch.linspace(0.2, 1 + i, 40))
            selector.rank_after(norm)
        found.append(selector.scores(_input()))
    estimated, true = found
    # What remains is the rounding to 8 bits.
    torch.testing.assert_close(estimated, true, rtol=0.05, atol=0.03 * float(true.abs().max()))
    layer = selector.layer
    y = F.conv2d(_input(), layer.weight, layer.bias, (2, 1), (1, 0), (1, 2))
    y = y if norm is None else norm.eval()(y)
    rows = y.permute(0, 2, 3, 1).reshape(-1, 40)
    expected = rows if block == 1 else rows.relu().view(-1, 5, 8).sum(2)
    torch.testing.assert_close(true, expected)


def test_random_estimates_have_the_scale_of_the_outputs() -> None:
    slopes = []
    for seed in range(40):
        selector = conv_selector(replace(SETTINGS, block=1), seed=seed)
        layer = selector.layer
        y = F.conv2d(_input(), layer.weight, layer.bias, (2, 1), (1, 0), (1, 2))
        rows = y.detach().permute(0, 2, 3, 1).reshape(-1, 40)
        slopes.append(float((selector.scores(_input()) * rows).sum() / rows.square().sum()))
    assert sum(slopes) / len(slopes) == pytest.approx(1, abs=0.1)


def test_shapes_of_the_pixel_form() -> None:
    selector = conv_selector(replace(SETTINGS, reduced_dimension=50))
    assert selector.projection is not None
    assert selector.projected is not None
    assert selector.projection.shape == (20, 12)  # 50 over 6 taps is 9, in fours 12
    assert selector.projected.shape == (6, 12, 64)
    assert selector.projected[..., 40:].count_nonzero() == 0
    wide = conv_selector(replace(SETTINGS, reduced_dimension=5000)).projection
    assert wide is not None
    assert wide.shape == (20, 20)


def test_refresh_follows_the_weight() -> None:
    layer = nn.Linear(12, 24)
    shape = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    selector = Selector(layer, settings=SETTINGS, seed=0, in_channels=12, **shape)
    x = torch.randn(50, 12)
    before = selector.scores(x)
    with torch.no_grad():
        layer.weight.mul_(-1)
    assert torch.equal(selector.scores(x), before)
    selector.refresh()
    assert not torch.equal(selector.scores(x), before)


def test_linear_layers_select_per_row() -> None:
    layer = nn.Linear(12, 24)
    shape = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    settings = replace(SETTINGS, selector="oracle")
    selector = Selector(layer, settings=settings, seed=0, in_channels=12, **shape)
    x = torch.randn(5, 7, 12)
    mask = selector(x)
    assert mask.shape == (35, 3, 1, 1)
    best = layer(x).relu().view(35, 3, 8).sum(2).argmax(1)
    assert mask[torch.arange(35), best].all()


def test_a_flattened_map_is_one_window() -> None:
    layer = nn.Linear(4 * 3 * 2, 24)
    shape = {"kernel": (3, 2), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    settings = replace(SETTINGS, selector="oracle")
    selector = Selector(layer, settings=settings, seed=0, in_channels=4, **shape)
    x = torch.randn(5, 4, 3, 2)
    expected = layer(x.flatten(1)).relu().view(5, 3, 8).sum(2)
    torch.testing.assert_close(selector.scores(x), expected)
    assert torch.equal(selector(x), selector(x.flatten(1)))


def test_oracle_finds_what_drs_estimates() -> None:
    x = _input(8)
    truth = conv_selector(replace(SETTINGS, selector="oracle"))(x)
    rate = {
        name: float((conv_selector(replace(SETTINGS, selector=name))(x) & truth).sum())
        for name in ("drs", "random")
    }
    assert rate["drs"] > 1.3 * rate["random"]


def test_tiles_share_a_selection() -> None:
    mask = conv_selector(replace(SETTINGS, tile=(2, 2)))(_input())
    assert torch.equal(mask, F.interpolate(mask[..., ::2, ::2].double(), scale_factor=2) > 0)


@pytest.mark.parametrize("first", ["mask", "packed"])
def test_a_held_selection_is_used_by_both_forms(first: str) -> None:
    selector, x, other = conv_selector(), _input(), _input() * -1
    free = selector(x)
    assert not torch.equal(free, selector(other))
    selector.holding = True
    if first == "mask":
        selector.mask(x)
    else:
        _packed(selector, x)
    assert torch.equal(selector(other), free)
    index, rowptr = _packed(selector, other)
    assert torch.equal(selection_to_mask(index, rowptr, selector.blocks, 4, 4), free)
    with pytest.raises(ValueError, match=r"'features\.3'.*held"):
        selector(_input(2))
    selector.holding, selector.held = False, None
    assert not torch.equal(selector(other), free)


@pytest.mark.parametrize("settings", ALL[::4], ids=str)
def test_no_gradient_flows(settings: LayerSettings) -> None:
    selector, x = conv_selector(settings), _input().requires_grad_()
    assert not selector.scores(x).requires_grad
    assert not any(t.requires_grad for t in _packed(selector, x))
    assert not list(selector.parameters())


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_an_empty_batch_selects_nothing(settings: LayerSettings) -> None:
    selector, x = conv_selector(settings), _input()[:0]
    assert selector(x).shape == (0, selector.blocks, 4, 4)
    index, rowptr = _packed(selector, x)
    assert index.shape[0] == 0
    assert rowptr.tolist() == [0]


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_nan_inputs_are_selected_not_lost(settings: LayerSettings) -> None:
    selector, x = conv_selector(settings), _input()
    x[1] = float("nan")
    mask = selector(x)
    index, rowptr = _packed(selector, x)
    assert torch.equal(selection_to_mask(index, rowptr, selector.blocks, 4, 4), mask)
    assert mask[1].any()


@given(st.integers(1, 40), st.floats(0.05, 0.95))
def test_sample_scope_keeps_its_density(batch: int, sparsity: float) -> None:
    selector = conv_selector(replace(SETTINGS, sparsity=sparsity, selector="oracle",
                                     scope="sample", block=1))  # fmt: skip
    kept = selector(_input(batch)).flatten(1).sum(1)
    assert (kept == max(1, round((1 - sparsity) * 640))).all()


def test_state() -> None:
    selector = conv_selector()
    state = selector.state_dict()
    assert list(state) == ["projection"]
    other = conv_selector(seed=7)
    other.load_state_dict(state)
    other.refresh()
    assert torch.equal(other(_input()), selector(_input()))
    assert not other.load_state_dict({}).missing_keys
    assert torch.equal(other(_input()), selector(_input()))
    assert list(conv_selector(replace(SETTINGS, selector="oracle")).state_dict()) == []


def test_half_precision_inputs_under_autocast() -> None:
    selector, x = conv_selector(), _input().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mask = selector(x)
    assert torch.equal(mask, selector(x.double()))


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_masks_can_be_traced_with_fake_tensors(settings: LayerSettings) -> None:
    selector = conv_selector(settings)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert selector(mode.from_tensor(_input())).shape == (3, selector.blocks, 4, 4)


def test_sample_scope_keeps_no_more_than_its_density_of_equal_scores() -> None:
    selector = conv_selector(replace(SETTINGS, scope="sample", sparsity=0.75))
    dark = torch.zeros(2, 20, 7, 6, dtype=torch.float64)
    assert (selector(dark).flatten(1).sum(1) == round(0.25 * selector.blocks * 16)).all()


def test_costly_projections_are_made_less_often() -> None:
    net = nn.Sequential(
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128 * 64, 512), nn.ReLU(), nn.Linear(512, 4),
    )  # fmt: skip
    config = dsgc.SparsityConfig(rules={"0": 0.8, "3": 0.8}, refresh=2, reduced_dimension=1600)
    x = torch.randn(4, 64, 8, 8)
    sparse = dsgc.compile(net, config=config, example_inputs=(x,), backend="reference")
    known: dict[str, Tensor] = {}
    made: dict[str, list[int]] = {"0": [], "3": []}
    for step in range(18):
        sparse(x)
        for name in made:
            projected = sparse.get_buffer(f"dsgc_selectors.{name}.projected")
            if step and projected is not known[name]:
                made[name].append(step)
            known[name] = projected
    # 1600 dimensions over 9 taps are the 64 channels: a projection is worth 2 samples of 64 pixels.
    # The linear layer has one position and 28 dimensions a pixel: its projection is worth 56.
    assert made == {"0": list(range(1, 18)), "3": list(range(1, 18, 2))}
    wide = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    config = dsgc.SparsityConfig(rules={"0": 0.8}, refresh=2, reduced_dimension=160)
    rows = torch.randn(4, 512)
    sparse = dsgc.compile(wide, config=config, example_inputs=(rows,), backend="reference")
    assert sparse.get_submodule("dsgc_selectors.0").rarely == 7  # 320 samples
