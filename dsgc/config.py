"""What to make sparse, how, and when: frozen dataclasses that check every value they are given."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from dsgc.errors import ConfigError, UnknownLayerError

__all__ = ["LayerSettings", "Rule", "RuleValue", "SparsityConfig"]

Block = Literal["auto"] | int
Pattern = str | re.Pattern[str]

BLOCKS = (1, 8, 16, 32)
SCOPES = ("position", "sample", "batch")
SELECTORS = ("svd", "drs", "oracle", "random")
PROJECTIONS = ("pixel", "window")
RANKINGS = ("normalized", "raw")
BN_STATS = ("active", "all")
SCHEDULES = ("constant", "linear", "cubic")

# "auto" takes the block of one AVX-512 vector from this many output channels on.
_WIDE_CHANNELS = 64
_WIDE_BLOCK = 16
_NARROW_BLOCK = 8
_STEPS_OF_AN_INTERVAL = 100
_MAX_SEED = 2**63 - 1


def _bad(field: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{field}={value!r} is not possible: it must be {allowed}", field)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_sparsity(field: str, value: object) -> None:
    if not _is_number(value) or not 0.0 < cast(float, value) < 1.0:
        raise _bad(
            field,
            value,
            "a number between 0 and 1, both excluded (the fraction of neurons left out; "
            "to keep a layer dense use a rule with dense=True)",
        )


def _check_choice(field: str, value: object, allowed: tuple[object, ...]) -> None:
    # 16.0 and True equal whole numbers and are none.
    same = (isinstance(value, type(one)) and value == one for one in allowed)
    if isinstance(value, bool) or not any(same):
        raise _bad(field, value, "one of " + ", ".join(repr(one) for one in allowed))


def _check_flag(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _bad(field, value, "True or False")


def _check_epsilon(field: str, value: object) -> None:
    # eps^2/2 - eps^3/3, the denominator of the reduced dimension, is positive below 1.5.
    if not _is_number(value) or not 0.0 < cast(float, value) < 1.5:
        raise _bad(field, value, "a number between 0 and 1.5, both excluded")


def _check_count(field: str, value: object, least: int) -> None:
    if not _is_count(value, least):
        raise _bad(field, value, f"a whole number of at least {least}")


def _check_shared(owner: str, values: Mapping[str, object]) -> None:
    """Check the settings that a rule and the whole config have in common; None means unset."""
    choices: dict[str, tuple[object, ...]] = {
        "block": ("auto", *BLOCKS),
        "scope": SCOPES,
        "selector": SELECTORS,
        "projection": PROJECTIONS,
        "ranking": RANKINGS,
        "bn_stats": BN_STATS,
    }
    for name, value in values.items():
        if value is None:
            continue
        field = f"{owner}{name}"
        if name in choices:
            _check_choice(field, value, choices[name])
        elif name == "sparsity":
            _check_sparsity(field, value)
        elif name == "epsilon":
            _check_epsilon(field, value)
        elif name == "reduced_dimension":
            _check_count(field, value, 1)
        elif name == "share_pool":
            _check_flag(field, value)


_SHARED = (
    "sparsity",
    "block",
    "scope",
    "selector",
    "projection",
    "ranking",
    "epsilon",
    "reduced_dimension",
    "bn_stats",
    "share_pool",
)


@dataclass(frozen=True)
class Rule:
    """Settings for the layers whose name matches `pattern`; what is None comes from the config.

    Args:
        pattern: a module name (`"features.3"`), or a regular expression that must match the whole
            name: a compiled one, or text that starts with `"re:"`.
        sparsity: makes the layer sparse, whatever the cost model says.
        dense: keeps the layer dense.

    Raises:
        ConfigError: a value is not possible.
    """

    pattern: Pattern
    sparsity: float | None = None
    dense: bool = False
    block: Block | None = None
    scope: str | None = None
    selector: str | None = None
    projection: str | None = None
    ranking: str | None = None
    epsilon: float | None = None
    reduced_dimension: int | None = None
    bn_stats: str | None = None
    share_pool: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, (str, re.Pattern)):
            raise _bad("rule pattern", self.pattern, "a module name or a regular expression")
        if isinstance(self.pattern, re.Pattern) and not isinstance(self.pattern.pattern, str):
            raise _bad("rule pattern", self.pattern, "a regular expression of text, not of bytes")
        if isinstance(self.pattern, str) and self.pattern.startswith("re:"):
            try:
                re.compile(self.pattern[3:])
            except re.error as error:
                allowed = f"a regular expression after 're:' ({error})"
                raise _bad("rule pattern", self.pattern, allowed) from error
        owner = f"rule {self.text!r}: "
        _check_flag(owner + "dense", self.dense)
        if self.dense and self.sparsity is not None:
            raise _bad(owner + "sparsity", self.sparsity, "left out where dense=True")
        _check_shared(owner, {name: getattr(self, name) for name in _SHARED})

    @property
    def text(self) -> str:
        """The pattern as a user would write it."""
        return self.pattern if isinstance(self.pattern, str) else f"re:{self.pattern.pattern}"

    def matches(self, name: str) -> bool:
        """Whether the rule holds for the module called `name`."""
        if isinstance(self.pattern, re.Pattern):
            return self.pattern.fullmatch(name) is not None
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], name) is not None
        return self.pattern == name


RuleValue = float | None | Rule
# Keys are names or patterns; as type they are Any, since a mapping's key type is invariant and a
# plain dict of names would not fit.
RuleSet = tuple[Rule, ...] | Mapping[Any, RuleValue]


def _as_rules(rules: object) -> tuple[Rule, ...]:
    if isinstance(rules, Mapping):
        return tuple(_as_rule(pattern, value) for pattern, value in rules.items())
    if isinstance(rules, Iterable) and not isinstance(rules, (str, bytes)):
        found = tuple(rules)
        for rule in found:
            if not isinstance(rule, Rule):
                raise _bad("rules", rule, "Rule objects, or a mapping from pattern to sparsity")
        return found
    raise _bad("rules", rules, "a sequence of Rule, or a mapping from pattern to sparsity")


def _as_rule(pattern: Pattern, value: object) -> Rule:
    if value is None:
        return Rule(pattern, dense=True)
    if isinstance(value, Rule):
        return replace(value, pattern=pattern)
    return Rule(pattern, sparsity=cast(float, value))


@dataclass(frozen=True)
class LayerSettings:
    """Everything a sparse layer needs to know, with no "auto" left. Made by `SparsityConfig`."""

    name: str
    sparsity: float
    block: int
    scope: str
    selector: str
    projection: str
    ranking: str
    epsilon: float
    reduced_dimension: int | None
    bn_stats: str
    share_pool: bool
    tile: tuple[int, int]
    seed: int


@dataclass(frozen=True)
class SparsityConfig:
    """How a model is made sparse.

    Args:
        sparsity: fraction of a sparse layer's output neurons that are not computed, in (0, 1).
        rules: exceptions for single layers, a sequence of `Rule` or a mapping
            `{pattern: sparsity | None | Rule}` (None keeps the layer dense); the first match wins.
        block: neighbouring channels selected together; "auto" is 16 from 64 channels on, else 8.
        scope: whose best blocks are taken: of each "position", of a whole "sample", or of the
            "batch" (the threshold of sample 0 for all: the published rule).
        selector: what ranks the blocks: outputs estimated in a space of few dimensions, "svd"
            (those that the layer's weight keeps most in) or "drs" (as published: random ones); or
            the true outputs, "oracle", or "random" numbers.
        projection: "pixel" or, as published, "window": what svd and drs project. A projected pixel
            serves every window that holds it; projecting windows costs more than the dense layer.
        ranking: outputs are ranked "normalized" by a batch norm that reads them directly, with its
            running statistics, or "raw" (as published).
        epsilon: accuracy of drs, sets the reduced dimension; svd takes an eighth of the channels at
            most (16 to 128), so that there it can only be made smaller.
        reduced_dimension: of a window, instead of what follows from epsilon. Of a projected pixel
            it is that by the taps of the window: 288 gives 32 for a 3x3 convolution.
        refresh: training steps between two projections of the weights: fewer in the beginning (see
            `refresh_interval`), more for layers whose projection costs as much as very many
            samples, which linear ones may have.
        bn_stats: batch statistics over "active" entries, or over "all" (the published rule).
        share_pool: one selection for each window of the pooling that follows.
        schedule: how sparsity grows from 0 over `warmup_steps`; "cubic" is Zhu & Gupta 2017
            (arXiv 1710.01878). The dense model runs until sparsity is 40 %, or half of what it is
            going to be, because below that leaving neurons out is no faster.
        warmup_steps: training steps until the full sparsity is reached; 0 if it does not grow.
        seed: of everything random; the same seed gives the same selections.

    Raises:
        ConfigError: a value is not possible.
    """

    sparsity: float = 0.8
    rules: RuleSet = ()
    block: Block = "auto"
    scope: str = "position"
    selector: str = "svd"
    projection: str = "pixel"
    ranking: str = "normalized"
    epsilon: float = 0.5
    reduced_dimension: int | None = None
    refresh: int = 10
    bn_stats: str = "active"
    share_pool: bool = False
    schedule: str = "constant"
    warmup_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.name != "reduced_dimension":
                raise _bad(field.name, None, "given")
        object.__setattr__(self, "rules", _as_rules(self.rules))
        _check_shared("", {name: getattr(self, name) for name in _SHARED})
        _check_count("refresh", self.refresh, 1)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_count("warmup_steps", self.warmup_steps, 0 if self.schedule == "constant" else 1)
        if self.schedule == "constant" and self.warmup_steps:
            text = "0 unless sparsity grows: set schedule to 'linear' or 'cubic'"
            raise _bad("warmup_steps", self.warmup_steps, text)
        if not _is_count(self.seed, 0) or self.seed > _MAX_SEED:
            raise _bad("seed", self.seed, "a whole number from 0 to 2**63 - 1")

    @property
    def rule_list(self) -> tuple[Rule, ...]:
        """The rules in order, in their normal form."""
        return cast("tuple[Rule, ...]", self.rules)

    def rule_for(self, name: str) -> Rule | None:
        """The first rule that matches the layer `name`, if any does."""
        return next((rule for rule in self.rule_list if rule.matches(name)), None)

    def check_rules(self, layers: Iterable[str]) -> None:
        """Raise UnknownLayerError if a rule matches none of the `layers`."""
        names = list(layers)
        for rule in self.rule_list:
            if not any(rule.matches(name) for name in names):
                near = difflib.get_close_matches(rule.text.removeprefix("re:"), names, 5, 0.4)
                shown = ", ".join(repr(name) for name in (near or names[:8])) or "none at all"
                lead = "layers with a name like it" if near else "the model's layers"
                raise UnknownLayerError(
                    f"rule {rule.text!r} matches no convolution or linear layer; {lead}: {shown}",
                    "rules",
                )

    def settings_for(
        self, name: str, out_channels: int, tile: tuple[int, int] = (1, 1)
    ) -> LayerSettings:
        """All settings of the layer `name` with `out_channels` outputs; its rule comes first."""
        rule = self.rule_for(name)
        values = {
            key: override
            if rule is not None and (override := getattr(rule, key)) is not None
            else getattr(self, key)
            for key in _SHARED
        }
        if values["block"] == "auto":
            wide = out_channels >= _WIDE_CHANNELS
            values["block"] = _WIDE_BLOCK if wide else _NARROW_BLOCK
        return LayerSettings(name=name, tile=tile, seed=self.seed, **values)

    def refresh_interval(self, step: int) -> int:
        """Training steps between two projections of the weights at training step `step`.

        Weights move fastest in the beginning: it grows by one in a hundred steps up to `refresh`.
        """
        return min(self.refresh, max(1, step // _STEPS_OF_AN_INTERVAL))

    def schedule_factor(self, step: int) -> float:
        """The part of the final sparsity, 0 to 1, that holds at training step `step`."""
        if self.schedule == "constant" or step >= self.warmup_steps:
            return 1.0
        progress = max(step, 0) / self.warmup_steps
        factor = progress if self.schedule == "linear" else 1.0 - math.pow(1.0 - progress, 3)
        return float(factor)
