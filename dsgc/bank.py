"""The selectors of a sparse module, and the training step they live by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsgc.config import SparsityConfig
from dsgc.decided import as_tensor, fits, from_tensor
from dsgc.errors import ConfigError, VerificationError
from dsgc.passes.balance_winners import balance_winners
from dsgc.passes.context import LayerDecision
from dsgc.passes.insert_selection import selector_target
from dsgc.select import Selector, mark_of

__all__ = ["SelectorBank"]

_BREAK_EVEN = 0.4  # sparsity that a growing one must have reached to be faster than dense
_SAMPLES = 50  # whose cost a layer's projection may have without being made less often


class SelectorBank(nn.Module):
    """One selector for every call of a sparse layer.

    `step` counts the training steps done with sparse layers; `decisions` has those about all
    layers. Selectors are made when the layers are chosen; what a checkpoint brings for them before
    that waits in `pending`, and what it brings about decisions in `saved`. `dense_now` says whether
    sparsity has not grown so far yet that leaving neurons out would be faster.
    """

    step: Tensor

    def __init__(self, config: SparsityConfig) -> None:
        super().__init__()
        self.config = config
        with torch.inference_mode(False):  # or it could not be counted up outside of that mode
            self.register_buffer("step", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.decisions: dict[str, LayerDecision] = {}
        self.pending: dict[str, Tensor] = {}
        self.saved: dict[str, LayerDecision] = {}
        self.layers: dict[str, nn.Module | None] = {}
        self.holding = False
        self.dense_now = False
        self._behind = False
        self._shared_at = mark_of(self.step)

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

    def share_out(self) -> None:
        """Set the winners of every layer for the training step done last."""
        factor, asked = self._factor, self.config.sparsity
        self.dense_now = factor * asked < min(_BREAK_EVEN, asked / 2)
        shares = balance_winners(self.decisions.values(), 0.0 if self.dense_now else factor)
        for site, share in shares.items():
            selector = self._find(site)
            if selector is not None:
                selector.winners, selector.density = share.winners, share.density
        self._shared_at = mark_of(self.step)

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

    def advance(self) -> None:
        """Begin a training step: schedule, step number, and from time to time new projections."""
        if not self._modules:
            return  # no layer is sparse: there is nothing to count for
        now, moved = int(self.step), mark_of(self.step) != self._shared_at
        self.step.add_(1)
        if self.config.schedule != "constant" and (moved or now <= self.config.warmup_steps):
            self.share_out()
        self._shared_at = mark_of(self.step)
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

    def withdraw(self) -> None:
        """The training step that `advance` began was none: its call failed."""
        if self._modules:
            self.step.sub_(1)

    def follow(self) -> None:
        """Before a call in eval mode: take up a step and weights that were written in place.

        An average of a model's weights is kept in such a way, in a copy that is never trained.
        torch.export puts tensors of its own in the place of weights: those are not looked at.
        """
        if not self._modules or torch.compiler.is_compiling():
            return
        if mark_of(self.step) != self._shared_at:
            for selector in self.selectors:
                selector.step = max(int(self.step) - 1, 0)
            self.share_out()
        if not self.dense_now:
            for selector in self.selectors:
                selector.refresh_if_written()

    def refresh(self) -> None:
        """Project the current weights of every layer."""
        for selector in self.selectors:
            selector.refresh()

    def refresh_unless_same(self) -> None:
        """Project the weights of the layers where they have changed, in whatever way."""
        for selector in self.selectors:
            selector.refresh_unless_same()

    def settle(self, model: nn.Module) -> None:
        """The layers of `model` have been chosen."""
        self.saved.clear()
        modules = dict(model.named_modules())
        self.layers = {site: modules.get(d.name) for site, d in self.decisions.items()}
        # It cannot be read while shapes are propagated, and without values.
        if type(self.step) is Tensor and not self.step.is_meta and int(self.step):
            for selector in self.selectors:
                selector.step = int(self.step) - 1
        self.share_out()

    def forget(self, model: nn.Module) -> None:
        """Undo the decisions; of layers that `model` still has they are made again as before."""
        modules = dict(model.named_modules())
        kept = self.saved
        for site, decision in self.decisions.items():
            if self.layers.get(site) is not modules.get(decision.name):
                continue
            kept[site] = decision
            selector = self._find(site)
            found = {} if selector is None else selector.state_dict()
            self.pending.update({f"{_key(site)}.{name}": found[name] for name in found})
        self.saved = {site: d for site, d in kept.items() if fits(d, model)}
        self._modules.clear()
        self.decisions.clear()

    def adopt(self, model: nn.Module) -> None:
        """Before graphs of `model` are built: forget what is about layers that it no longer has."""
        modules = dict(model.named_modules())
        decided = self.decisions.items()
        if any(self.layers.get(site) is not modules.get(d.name) for site, d in decided):
            self.forget(model)
        self.saved = {site: d for site, d in self.saved.items() if fits(d, model)}

    def resume(self, model: nn.Module) -> None:
        """Take up the state after a checkpoint was loaded into `model`.

        A checkpoint that decided otherwise wins: layers are chosen anew at the next call, as it
        says. One without decisions changes none.
        """
        self.saved = {site: d for site, d in self.saved.items() if fits(d, model)}
        if self.decisions and any(self._differs(decision) for decision in self.saved.values()):
            self._modules.clear()
            self.decisions.clear()
        if self.decisions:
            self.saved.clear()
        self.pending = {
            name: tensor
            for name, tensor in self.pending.items()
            if name.partition(".")[0] not in self._modules
        }
        for selector in self.selectors:
            selector.step = max(int(self.step) - 1, 0)
        self.share_out()
        self.refresh()

    def _differs(self, saved: LayerDecision) -> bool:
        """Whether a layer is another than a checkpoint has it, and no rule asks for that."""
        rule, present = self.config.rule_for(saved.name), self.decisions.get(saved.site)
        if present is None:
            return saved.sparse
        if present.sparse != saved.sparse:
            return rule is None or not (rule.dense or rule.sparsity is not None)
        return saved.sparse and (present.macs, present.geometry) != (saved.macs, saved.geometry)

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

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As in torch, but the step stays known: `to_empty` would lose it, and meta has none."""
        step = self.step
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.step = step if self.step.is_meta else step.to(self.step.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """The step, the decisions, and what still waits for its selector."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.pending.items():
            destination[f"{prefix}{name}"] = tensor
        known = self.decisions or self.saved
        if known:
            destination[f"{prefix}decisions"] = as_tensor(known)

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
            if not key.startswith(prefix) or value.is_meta:
                continue
            if name == "step":
                self._load_step(value, local_metadata.get("assign_to_params_buffers", False))
            elif name == "decisions":
                self.saved = from_tensor(value, self.config)
            else:
                self.pending[name] = value.detach().clone()

    def _load_step(self, value: Tensor, assign: bool) -> None:
        if assign:
            self.step = value.detach().clone()
        else:
            self.step.copy_(value)


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
