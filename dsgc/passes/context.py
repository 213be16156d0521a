"""What the passes share: the decisions about layers, and where selectors come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from dsgc.config import LayerSettings, SparsityConfig
from dsgc.ops.layout import ceil_div
from dsgc.passes.geometry import Geometry

__all__ = ["Context", "LayerDecision"]


@dataclass(frozen=True)
class LayerDecision:
    """Whether one call of a convolution or linear layer is sparse, why, and at what cost.

    `macs` and `search_macs` are multiply-adds of one sample: those of the dense layer and those of
    finding the selection. `site` is the layer's name, with `#2` and so on for its further calls.
    `too_dear`: it could be sparse, but would not be faster.
    """

    name: str
    site: str
    kind: str
    sparse: bool
    reason: str
    macs: int = 0
    search_macs: int = 0
    input_density: float = 1.0
    settings: LayerSettings | None = None
    geometry: Geometry | None = None
    where: str = ""
    too_dear: bool = False

    @property
    def blocks(self) -> int:
        """How many blocks of output channels there are; 0 for a dense layer."""
        if self.settings is None or self.geometry is None:
            return 0
        return ceil_div(self.geometry.out_channels, self.settings.block)


MakeSelector = Callable[[LayerDecision], nn.Module]


@dataclass
class Context:
    """The state that passes read and write besides the graph.

    `decisions` is by site, in the order of execution. Once `decided`, passes only look layers up,
    so that every graph of a model (another image size, another call) makes the same layers sparse.
    `saved` is what a checkpoint says about layers, by site: it comes after rules and before costs.
    `last_part` is False for a part of a model whose output other parts read: it has no final
    classifier.
    """

    model: nn.Module
    config: SparsityConfig
    make_selector: MakeSelector
    namespace: str = "dsgc"
    decisions: dict[str, LayerDecision] = field(default_factory=dict)
    saved: dict[str, LayerDecision] = field(default_factory=dict)
    decided: bool = False
    last_part: bool = True
