"""The decisions about layers as a tensor, so that a checkpoint says which layers are sparse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsgc.config import SparsityConfig
from dsgc.errors import ConfigError
from dsgc.passes.context import LayerDecision
from dsgc.passes.geometry import Geometry

__all__ = ["as_tensor", "fits", "from_tensor"]

_FORMAT = 1
_PLAIN = (
    "name", "site", "kind", "sparse", "reason", "macs", "search_macs", "input_density", "too_dear",
)  # fmt: skip


def as_tensor(decisions: Mapping[str, LayerDecision]) -> Tensor:
    """The decisions as JSON, in the bytes of a tensor, which every format of checkpoints holds."""
    layers = [_plain(decision) for decision in decisions.values()]
    text = json.dumps({"format": _FORMAT, "layers": layers})
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _plain(decision: LayerDecision) -> dict[str, Any]:
    layer = {name: getattr(decision, name) for name in _PLAIN}
    if decision.sparse and decision.settings is not None and decision.geometry is not None:
        layer["geometry"] = asdict(decision.geometry)
        layer["tile"] = decision.settings.tile
    return layer


def from_tensor(tensor: Tensor, config: SparsityConfig) -> dict[str, LayerDecision]:
    """What `as_tensor` wrote, by site; how sparse a layer is follows from `config`.

    Raises:
        ConfigError: the tensor does not hold decisions, or a newer dsgc wrote it.
    """
    try:
        found = json.loads(bytes(tensor.detach().cpu().reshape(-1).tolist()))
        known = found["format"] == _FORMAT
        made = [_decision(layer, config) for layer in found["layers"]] if known else []
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the checkpoint's decisions about layers cannot be read ({error}); leave out "
            "'dsgc_selectors.decisions' to have them made anew"
        ) from error
    if not known:
        raise ConfigError(
            f"the checkpoint's decisions about layers have format {found['format']}, this dsgc "
            f"reads {_FORMAT}: load it with a newer dsgc"
        )
    return {decision.site: decision for decision in made}


def _decision(layer: Mapping[str, Any], config: SparsityConfig) -> LayerDecision:
    decision = LayerDecision(**{name: layer[name] for name in _PLAIN})
    if not decision.sparse:
        return decision
    sizes: dict[str, Any] = {
        name: tuple(size) if isinstance(size, list) else size
        for name, size in layer["geometry"].items()
    }
    geometry, (height, width) = Geometry(**sizes), layer["tile"]
    settings = config.settings_for(decision.name, geometry.out_channels, (height, width))
    return replace(decision, geometry=geometry, settings=settings)


def fits(decision: LayerDecision, model: nn.Module) -> bool:
    """Whether `model` has the layer that a decision is about, of the same size."""
    try:
        layer = model.get_submodule(decision.name)
    except AttributeError:
        return False
    geometry = decision.geometry
    if geometry is None:
        return not decision.sparse
    if isinstance(layer, nn.Linear):
        return (layer.in_features, layer.out_features) == (geometry.window, geometry.out_channels)
    if not isinstance(layer, nn.Conv2d):
        return False
    # Not its weight's: that of a parametrized layer would be computed for that.
    found = (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return found == (geometry.out_channels, geometry.in_channels, *geometry.kernel)
