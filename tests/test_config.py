"""Settings: values are checked, rules are matched, schedules grow."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

import dsgc
from dsgc.config import LayerSettings

BAD: list[dict[str, Any]] = [
    {"sparsity": 0.0},
    {"sparsity": 1.0},
    {"sparsity": -0.1},
    {"sparsity": float("nan")},
    {"sparsity": "0.8"},
    {"sparsity": True},
    {"sparsity": None},
    {"block": 0},
    {"block": 7},
    {"block": "16"},
    {"block": True},
    {"block": 1.0},
    {"block": 16.0},
    {"scope": "layer"},
    {"selector": "topk"},
    {"projection": "channel"},
    {"epsilon": 0.0},
    {"epsilon": 1.5},
    {"reduced_dimension": 0},
    {"reduced_dimension": 2.5},
    {"refresh": 0},
    {"bn_stats": "some"},
    {"share_pool": 1},
    {"schedule": "exponential"},
    {"schedule": "linear"},
    {"schedule": "cubic", "warmup_steps": 0},
    {"warmup_steps": -1},
    {"warmup_steps": 10},  # the schedule is constant
    {"seed": -1},
    {"seed": 2**63},
    {"rules": 3},
    {"rules": "conv1"},
    {"rules": ["conv1"]},
    {"rules": {"conv1": 1.5}},
    {"rules": {"re:(": 0.5}},
    {"rules": {3: 0.5}},
]


@pytest.mark.parametrize("setting", BAD, ids=str)
def test_bad_value_names_field_value_and_what_is_allowed(setting: dict[str, Any]) -> None:
    field = next(iter(setting))
    with pytest.raises(dsgc.ConfigError) as caught:
        dsgc.SparsityConfig(**setting)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    named = ("warmup_steps",) if field == "schedule" else (field, "rule")
    assert any(name in message for name in (*named, field))
    assert "must be" in message


def test_defaults() -> None:
    config = dsgc.SparsityConfig()
    assert (config.sparsity, config.block, config.scope) == (0.8, "auto", "position")
    assert (config.selector, config.refresh, config.bn_stats) == ("svd", 10, "active")


def test_config_is_frozen_and_survives_pickling() -> None:
    config = dsgc.SparsityConfig(rules={re.compile("a.*"): None})
    with pytest.raises(AttributeError):
        config.sparsity = 0.5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("channels", "block", "expected"),
    [(64, "auto", 16), (63, "auto", 8), (8, 32, 32), (512, 1, 1), (1, "auto", 8)],
)
def test_block_follows_width(channels: int, block: Any, expected: int) -> None:
    settings = dsgc.SparsityConfig(block=block).settings_for("conv", channels)
    assert settings.block == expected


def test_first_matching_rule_wins() -> None:
    rules = (
        dsgc.Rule("conv1", sparsity=0.5, block=8),
        dsgc.Rule("re:conv.*", sparsity=0.9, selector="oracle"),
    )
    config = dsgc.SparsityConfig(rules=rules)
    first = config.settings_for("conv1", 64)
    assert (first.sparsity, first.block, first.selector) == (0.5, 8, "svd")
    second = config.settings_for("conv2", 64)
    assert (second.sparsity, second.block, second.selector) == (0.9, 16, "oracle")
    assert config.settings_for("fc", 64).sparsity == 0.8


def test_rules_as_a_mapping() -> None:
    config = dsgc.SparsityConfig(
        rules={"a": None, "b": 0.5, re.compile("c"): dsgc.Rule("", scope="batch")}
    )
    assert config.rule_list == (
        dsgc.Rule("a", dense=True),
        dsgc.Rule("b", sparsity=0.5),
        dsgc.Rule(re.compile("c"), scope="batch"),
    )


def test_regular_expressions_match_the_whole_name() -> None:
    rule = dsgc.Rule("re:conv")
    assert rule.matches("conv")
    assert not rule.matches("conv1")
    assert not dsgc.Rule("conv.").matches("conv1")


def test_dense_rule_with_a_sparsity_contradicts_itself() -> None:
    with pytest.raises(dsgc.ConfigError, match="dense=True"):
        dsgc.Rule("a", sparsity=0.5, dense=True)


def test_rule_without_layer_lists_near_names() -> None:
    config = dsgc.SparsityConfig(rules={"layer1.conv": 0.5})
    with pytest.raises(dsgc.UnknownLayerError, match=r"layer1\.conv1") as caught:
        config.check_rules(["layer1.conv1", "fc"])
    assert isinstance(caught.value, dsgc.ConfigError)


def test_settings_are_complete() -> None:
    settings = dsgc.SparsityConfig(seed=3).settings_for("conv", 64, (2, 2))
    assert settings == LayerSettings(
        *("conv", 0.8, 16, "position", "svd", "pixel", "normalized", 0.5, None, "active", False),
        *((2, 2), 3),
    )


def test_schedules() -> None:
    linear = dsgc.SparsityConfig(schedule="linear", warmup_steps=10)
    cubic = dsgc.SparsityConfig(schedule="cubic", warmup_steps=10)
    assert dsgc.SparsityConfig().schedule_factor(0) == 1.0
    assert [linear.schedule_factor(t) for t in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    # Zhu & Gupta: s_f * (1 - (1 - t/T)^3), from dense.
    assert [cubic.schedule_factor(t) for t in (0, 5, 10)] == [0.0, 0.875, 1.0]


def test_projections_are_renewed_more_often_in_the_beginning() -> None:
    usual, often = dsgc.SparsityConfig(refresh=10), dsgc.SparsityConfig(refresh=1)
    assert [usual.refresh_interval(t) for t in (0, 199, 200, 999, 1000, 99999)] == [
        1,
        1,
        2,
        9,
        10,
        10,
    ]
    assert [often.refresh_interval(t) for t in (0, 500)] == [1, 1]
