"""The selectors of a sparse module, and the training step they live by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from dsgc.config import SparsityConfig
from dsgc.errors import ConfigError, VerificationError
from dsgc.passes.balance_winners import balance_winners
from dsgc.passes.context import LayerDecision
from dsgc.passes.insert_selection import selector_target
from dsgc.select import Selector

__all__ = ["SelectorBank"]

_BREAK_EVEN = 0.4  # sparsity that a growing one must have reached to be faster than dense
_SAMPLES = 50  # whose cost a layer's projection may have without being made less often


class SelectorBank(nn.Module):
    """One selector for every call of a sparse layer.

    `step` counts the training steps done. Selectors are made when the layers are chosen; what a
    checkpoint brings for them before that waits in `pending`. `dense_now` says whether sparsity has
    not grown so far yet that leaving neurons out would be faster.
    """

    step: Tensor

    def __init__(self, config: SparsityConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.pending: dict[str, Tensor] = {}
        self.holding = False
        self.dense_now = False
        self._behind = False

    @property
    def selectors(self) -> list[Selector]:
        """All selectors, in the order in which the layers run."""
        return [child for child in self.children() if isinstance(child, Selector)]

    def _find(self, site: str) -> Selector | None:
        """The selector of the layer at `site`, if there is one."""
        found = self._modules.get(_key(site))
        return found if isinstance(found, Selector) else None

    def obtain(self, decision: LayerDecision, layer: nn.Module) -> Selector:
        """The selector of a sparse layer, made if it does not exist yet.

        Raises:
            VerificationError: the selector that is there is one of another layer.
        """
        found = self._find(decision.site)
        settings, geometry = decision.settings, decision.geometry
        if found is not None:
            made_for = (found.settings.name, found.in_channels, found.out_channels)
            if geometry is None or made_for != (
                decision.name, geometry.in_channels, geometry.out_channels
            ):  # fmt: skip
                raise VerificationError(
                    f"{decision.site}: its selector was made for layer {made_for[0]!r} with "
                    f"{made_for[1]} input and {made_for[2]} output channels"
                )
            return found
        key = _key(decision.site)
        if settings is None or geometry is None or not isinstance(layer, (nn.Conv2d, nn.Linear)):
            raise VerificationError(f"{decision.site}: a selector for a layer that is not sparse")
        selector = Selector(
            layer,
            settings=settings,
            seed=settings.seed,
            kernel=geometry.kernel,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            in_channels=geometry.in_channels,
        )
        selector.rarely = _rarely(decision, selector)
        selector.train(self.training)
        # Not add_module: it refuses layers called like a method of Module ("type", "half").
        self._modules[key] = selector
        self._adopt_pending(key, selector)
        selector.refresh()
        if self.holding:
            selector.holding = True
        return selector

    def _adopt_pending(self, key: str, selector: Selector) -> None:
        prefix = f"{key}."
        names = [name for name in self.pending if name.startswith(prefix)]
        state = {name.removeprefix(prefix): self.pending.pop(name) for name in names}
        if not state:
            return
        try:
            selector.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise ConfigError(
                f"the loaded checkpoint does not fit the selector of {key!r}: {error}; compile "
                "with the settings that the checkpoint was made with"
            ) from error

    def share_out(self, decisions: Mapping[str, LayerDecision]) -> None:
        """Set the winners of every layer for the training step done last."""
        factor, asked = self._factor, self.config.sparsity
        self.dense_now = factor * asked < min(_BREAK_EVEN, asked / 2)
        shares = balance_winners(decisions.values(), 0.0 if self.dense_now else factor)
        for site, share in shares.items():
            selector = self._find(site)
            if selector is not None:
                selector.winners, selector.density = share.winners, share.density

    @property
    def _factor(self) -> float:
        """The part of the full sparsity that holds in the training step done last."""
        if self.config.schedule == "constant":
            return 1.0  # whatever the step: it cannot be read while shapes are propagated
        return self.config.schedule_factor(max(int(self.step) - 1, 0))

    def held(self, decisions: Mapping[str, LayerDecision]) -> dict[str, Tensor]:
        """The selections that `hold` kept, by site of the layer."""
        found = {}
        for site in decisions:
            selector = self._find(site)
            if selector is not None and selector.held is not None:
                found[site] = selector.held
        return found

    def advance(self, decisions: Mapping[str, LayerDecision]) -> None:
        """Begin a training step: schedule, step number, and from time to time new projections."""
        now = int(self.step)
        self.step.add_(1)
        if self.config.schedule != "constant" and now <= self.config.warmup_steps:
            self.share_out(decisions)
        if self.dense_now:
            self._behind = True
            return
        if self._behind:
            self._behind = False
            self.refresh()
        interval = self.config.refresh_interval(now)
        for i, selector in enumerate(self.selectors):
            selector.step = now
            # Not all layers in the same step, so that steps take about equally long.
            if (now + i) % (interval * selector.rarely) == 0:
                selector.refresh()

    def refresh(self) -> None:
        """Project the current weights of every layer."""
        for selector in self.selectors:
            selector.refresh()

    def resume(self, decisions: Mapping[str, LayerDecision]) -> None:
        """Take up the state after a checkpoint was loaded."""
        for selector in self.selectors:
            selector.step = max(int(self.step) - 1, 0)
        self.share_out(decisions)
        self.refresh()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Within, the first selection of every layer is kept and used again."""
        self.holding = True
        for selector in self.selectors:
            selector.holding = True
        try:
            yield
        finally:
            self.holding = False
            for selector in self.selectors:
                selector.holding = False
                selector.held = None

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
        """Nothing is missing in a dense checkpoint; what no selector takes yet waits."""
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key == f"{prefix}step":
                self.step.copy_(value)
            elif key.startswith(prefix) and name.partition(".")[0] not in self._modules:
                self.pending[name] = value.detach().clone()


def _key(site: str) -> str:
    """What the selector of a layer is called in the bank."""
    return selector_target(site).partition(".")[2]


def _rarely(decision: LayerDecision, selector: Selector) -> int:
    """A projection that costs as much as N samples is made N / 50 times less often than others.

    A projection reads the weight about twice a dimension, a sample once a position.
    """
    if not decision.macs:
        return 1
    positions = decision.macs / selector.weight.numel()
    return max(1, ceil(2 * selector.reduced[1] / positions / _SAMPLES))
