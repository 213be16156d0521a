"""Selector: finds the selection of one sparse layer, for the semantic and the lowered graph."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dsgc.config import LayerSettings
from dsgc.ops.layout import (
    ceil_div,
    channels_last,
    conv_output_size,
    mask_to_selection,
    selection_to_mask,
)
from dsgc.ops.normalization import running_affine
from dsgc.ops.reference.selection import above_mask, block_scores, drs_scores, winners_mask
from dsgc.select.projection import (
    all_equal,
    estimate_unit,
    fingerprint,
    generator_for,
    leading_projection,
    mark_of,
    project_weight,
    round_weight,
    search_dimension,
    ternary_projection,
)
from dsgc.select.recomputation import refuse_recomputation

__all__ = ["Selector"]

Pair = tuple[int, int]


class Selector(nn.Module):
    """Ranks a layer's output blocks and selects the best, without any gradient.

    The same input, weights, seed and `step` give the same selection. NaN estimates count as
    infinity, so that they are computed and seen.

    Args:
        weight_of: the layer; it is read, never registered as a child.
        settings: block, scope, selector and the rest.
        seed: of the projection and of the random selector, together with the layer's name.
        kernel, stride, padding, dilation: the layer's window. A linear layer has 1 x 1, or the
            whole map if its input is a flattened one.
        in_channels: channels of the layer's input map.

    Attributes:
        winners: blocks kept of each position (or tile), for the scope "position".
        density: fraction kept, for the scopes "sample" and "batch".
        step: training step; only the random selector depends on it.
        rarely: refreshes of the other layers to one of this layer.
        changes: how often a refresh made another projected weight of it.
        held: bool [N, blocks, H, W], a selection used instead of searching, or None.
        holding: keep the first selection found in `held`.
        projection: None unless the selector is "drs" (int8, ternary, in the state_dict) or "svd"
            (of the weight as of the last `refresh`).
        projected: the weight in the projected space, as of the last `refresh`; 8-bit levels unless
            whole windows are projected.
        unit: what a level of each neuron is worth, None if whole windows are projected.
    """

    projection: Tensor | None
    projected: Tensor | None
    unit: Tensor | None

    def __init__(
        self,
        weight_of: nn.Conv2d | nn.Linear,
        *,
        settings: LayerSettings,
        seed: int,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        in_channels: int,
    ) -> None:
        super().__init__()
        # In a tuple, so that nn.Module does not register the layer a second time.
        self._layer_of = (weight_of,)
        self.settings = settings
        self.seed = seed
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.in_channels = in_channels
        self.out_channels = weight_of.weight.shape[0]
        self.blocks = ceil_div(self.out_channels, settings.block)
        self.density = 1.0 - settings.sparsity
        self.winners = min(self.blocks, max(1, int(self.blocks * self.density + 0.5)))
        self.step = 0
        self.rarely = 1
        self.changes = 0
        self._seen: tuple[Tensor, ...] = ()
        self.held: Tensor | None = None
        self.holding = False
        self._norm_of: tuple[_NormBase, ...] = ()
        drawn = settings.selector == "drs"
        with torch.inference_mode(False):  # or no checkpoint could be loaded outside of that mode
            projection = self._draw() if drawn else None
        self.register_buffer("projection", projection, persistent=drawn)
        self.register_buffer("projected", None, persistent=False)
        self.register_buffer("unit", None, persistent=False)
        self.refresh()

    @property
    def layer(self) -> nn.Conv2d | nn.Linear:
        """The layer whose outputs are selected."""
        return self._layer_of[0]

    @property
    def norm(self) -> _NormBase | None:
        """The batch norm that the ranking follows, see `rank_after`."""
        return self._norm_of[0] if self._norm_of else None

    @property
    def weight(self) -> Tensor:
        """The layer's weight as [K, C, R, S]."""
        return self.layer.weight.reshape(self.out_channels, self.in_channels, *self.kernel)

    @property
    def by_window(self) -> bool:
        """Whether whole windows are projected (as published) rather than single pixels."""
        return self.settings.projection == "window"

    def rank_after(self, norm: _NormBase) -> None:
        """Rank what `norm`, which reads the layer's output, is going to make of it."""
        # In a tuple, as the layer.
        self._norm_of = (norm,)

    @property
    def reduced(self) -> tuple[int, int]:
        """Rows and columns of a projection."""
        channels, taps = self.in_channels, self.kernel[0] * self.kernel[1]
        columns = search_dimension(self.settings, self.out_channels, channels, taps)
        return channels * taps if self.by_window else channels, columns

    def _draw(self) -> Tensor:
        generator = generator_for(self.seed, self.settings.name, "projection")
        return ternary_projection(*self.reduced, generator).to(self.weight.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        """Project the layer's current weight."""
        self._projected_at = mark_of(self.layer.weight)
        self._seen = ()
        if self.settings.selector == "svd":
            self.projection = leading_projection(self.weight, min(self.reduced), self.by_window)
        if self.projection is None:
            return
        # A copy on another device may have moved the weight before the buffers.
        self.projection = self.projection.to(self.weight.device)
        projected = project_weight(self.weight, self.projection, self.by_window)
        projected = projected * estimate_unit(self.projection)
        found = (projected, None) if self.by_window else round_weight(projected)
        if not all_equal(found, (self.projected, self.unit)):
            self.changes += 1
        self.projected, self.unit = found

    def refresh_unless_same(self) -> None:
        """Project the weight, except where not one of its numbers has changed since the last time
        that this was asked.
        """
        if self.settings.selector != "svd" or self.layer.weight.is_meta:
            self.refresh()
            return
        found = (torch.tensor(mark_of(self.layer.weight)), *fingerprint(self.layer.weight))
        if not all_equal(found, self._seen):
            self.refresh()
            self._seen = found

    def refresh_if_written(self) -> None:
        """Project the weight if it was changed, or is another tensor, since the last time."""
        if self.projection is not None and mark_of(self.layer.weight) != self._projected_at:
            self.refresh()

    def _ranked(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and offset [K] that make what is ranked of a product of input and weight."""
        bias, norm = self.layer.bias, self.norm
        if norm is None or norm.running_var is None or norm.running_mean is None:
            return None, bias
        scale, shift = running_affine(norm)
        return scale, shift if bias is None else shift + bias * scale

    def forward(self, x: Tensor) -> Tensor:
        """The same as `mask`."""
        return self.mask(x)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Scores [P, blocks] of the outputs for x [N, C, H, W], or [..., C] of a linear layer."""
        x = self._maps(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._finite(self._estimate(x))

    @torch.no_grad()
    def mask(self, x: Tensor) -> Tensor:
        """The selection for x, as for `scores`: bool [N, blocks, H, W] of the output's H and W."""
        x = self._maps(x)
        out_size = self._out_size(x.shape[1:])
        if self.held is not None:
            return self._checked(self.held, x.shape[0], out_size)
        self._refuse_recomputation()
        scores = self.scores(x)
        if self.settings.scope == "position":
            mask = winners_mask(scores, self.winners, out_size, self.settings.tile)
        elif self.settings.scope == "sample":
            mask = self._sample_mask(scores, x.shape[0], out_size)
        else:
            mask = above_mask(scores, self._threshold(scores, x.shape[0]), True, out_size)
        if self.holding:
            self.held = mask
        return mask

    @torch.no_grad()
    def packed(
        self,
        x: Tensor,
        index: Tensor | None,
        rowptr: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        act: str,
        size: Sequence[int],
        ops: Any,
    ) -> tuple[Tensor, Tensor]:
        """The selection (index, rowptr) for a deferred activation (see `dsgc.ops.Activation`).

        A bitmask for blocks of one channel, else a list. Works through
        `ops`, which has the operators as attributes.
        """
        settings = self.settings
        batch = x.shape[0] if rowptr is None else (rowptr.shape[0] - 1) // (size[1] * size[2])
        out_size, bits = self._out_size(size), settings.block == 1
        if self.held is not None:
            return mask_to_selection(self._checked(self.held, batch, out_size), bits)
        self._refuse_recomputation()
        activation = (x.detach(), index, rowptr, scale, shift, act, size)
        if self.projection is not None:
            scores = ops.drs_scores(*activation, *self.search())
        elif settings.selector == "random":
            scores = self._random(batch * out_size[0] * out_size[1], x)
        else:
            scores = self.scores(ops.unpack(*activation))
        if settings.scope == "position":
            # NaN needs no care here: select_winners counts it as infinity itself.
            found = ops.select_winners(scores, self.winners, out_size, settings.tile, bits)
        elif settings.scope == "sample":
            scores = self._finite(scores)
            found = mask_to_selection(self._sample_mask(scores, batch, out_size), bits)
        else:
            scores = self._finite(scores)
            found = ops.select_above(scores, self._threshold(scores, batch), True, bits)
        selection: tuple[Tensor, Tensor] = tuple(found)
        if self.holding:
            self.held = selection_to_mask(*selection, self.blocks, *out_size)
        return selection

    def _refuse_recomputation(self) -> None:
        if self.training:
            refuse_recomputation(f"layer {self.settings.name!r}")

    def _maps(self, x: Tensor) -> Tensor:
        """x as maps [N, C, H, W] in the weight's dtype; each row of a linear layer is a map."""
        x = x.detach().to(self.weight.dtype)
        if isinstance(self.layer, nn.Linear):
            return x.reshape(-1, self.in_channels, *self.kernel)
        return x

    def _out_size(self, size: Sequence[int]) -> Pair:
        return conv_output_size(size, self.kernel, self.stride, self.padding, self.dilation)

    def _checked(self, held: Tensor, batch: int, out_size: Pair) -> Tensor:
        expected = (batch, self.blocks, *out_size)
        if tuple(held.shape) != expected:
            raise ValueError(
                f"layer {self.settings.name!r}: the selection held is for outputs of "
                f"{tuple(held.shape)}, not {expected}"
            )
        return held

    def _estimate(self, x: Tensor) -> Tensor:
        """Scores [P, blocks] for maps x, before infinities and NaN are dealt with."""
        size = tuple(x.shape[1:])
        if self.projection is not None:
            return drs_scores(x, None, None, None, None, "identity", size, *self.search())
        if self.settings.selector == "random":
            height, width = self._out_size(size)
            return self._random(x.shape[0] * height * width, x)
        window = (self.stride, self.padding, self.dilation)
        outputs = F.conv2d(channels_last(x), self.weight, None, *window)
        scale, offset = self._ranked()
        if scale is not None:
            outputs = outputs * scale.view(-1, 1, 1)
        if offset is not None:
            outputs = outputs + offset.view(-1, 1, 1)
        return block_scores(outputs, self.settings.block)

    def search(self) -> tuple[Any, ...]:
        """The arguments of drs_scores behind the activation."""
        projected, unit = self.projected, self.unit
        if projected is None:
            raise ValueError(f"layer {self.settings.name!r}: no projected weight")
        scale, offset = self._ranked()
        if scale is not None and unit is not None:
            fill = (0, unit.shape[0] - scale.shape[0])
            unit = unit * F.pad(scale, fill)
        elif scale is not None:
            projected = projected * scale
        window = (self.kernel, self.stride, self.padding, self.dilation)
        block = self.settings.block
        return (self.projection, projected, unit, offset, self.out_channels, block, *window)

    def _random(self, positions: int, x: Tensor) -> Tensor:
        generator = generator_for(self.seed, self.settings.name, self.step)
        draw = torch.rand(positions, self.blocks, generator=generator, dtype=torch.float32)
        return draw.to(x)

    def _finite(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(scores.isnan(), torch.inf)

    def _sample_mask(self, scores: Tensor, batch: int, out_size: Pair) -> Tensor:
        """The best blocks of each sample, exactly as many as the density says, ties included."""
        flat = scores.view(batch, out_size[0] * out_size[1] * self.blocks)
        count = min(flat.shape[1], max(1, round(self.density * flat.shape[1])))
        best = torch.sort(flat, dim=1, descending=True, stable=True).indices[:, :count]
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, best, True)
        return mask.view(batch, *out_size, self.blocks).permute(0, 3, 1, 2)

    def _threshold(self, scores: Tensor, batch: int) -> Tensor:
        """[N]: what a score must exceed in the scope "batch".

        The published rule: the k-th largest score of sample 0 is the threshold of all samples.
        """
        if batch == 0:
            return scores.new_empty(0)
        flat = scores.view(batch, -1)
        # Rounded first, because 1 - 0.8 is a little less than 0.2.
        count = max(1, int(round(self.density * flat.shape[1], 6)))
        return flat[0].topk(count).values[-1].repeat(batch)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load a projection if there is one; a dense checkpoint has none and misses nothing."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, [], unexpected_keys, error_msgs
        )
