"""Networks drawn at random: layers, activations, pooling, sums and views in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RandomNetwork"]

Shape = tuple[int, ...]
MOST_CHANNELS = 96

# Of one map.
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_method": lambda x: x.relu(),
    "doubled": lambda x: x * 2.0,
    "negative": lambda x: -x,
    "first": lambda x: x[:, :16],
    "half": lambda x: x.chunk(2, 1)[0],
    "shifted": lambda x: (x + 0.25) / 2.0 - 1.0,
    "mirrored": lambda x: F.pad(x.flip(3), (1, 1, 0, 0), "reflect"),
    "larger": lambda x: F.interpolate(x, scale_factor=2.0),
    "every_second": lambda x: x[:, :, ::2, ::2],
    "padded": lambda x: F.pad(x, (1, 0, 2, 1)),
    "turned": lambda x: x.transpose(2, 3),
    "gated": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
}

# Of two maps of one shape.
SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plus": lambda x, y: x + y,
    "add": lambda x, y: torch.add(x, y, alpha=2),
    "minus": lambda x, y: x - 0.5 * y,
    "times": lambda x, y: x * y,
    "plus_relu": lambda x, y: F.relu(x + y),
    "beside": lambda x, y: torch.cat((x, y), 1),
}

# What there are no kernels of outside torch.
_WITHOUT_KERNEL = (nn.GroupNorm, nn.PReLU)


@dataclass
class Step:
    """One operation, by name, on values made before; `module` is an attribute of the network."""

    name: str
    sources: tuple[int, ...]
    module: str = ""


class RandomNetwork(nn.Module):
    """A network that is a function of `seed`, for batches of `example`; a `plain` one has only what
    an artifact can hold.

    Attributes:
        example: [N, C, H, W], made to run on.
        steps: what it does.
    """

    example: Tensor

    def __init__(self, seed: int, length: int = 10, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.draw, self.plain = random.Random(seed), plain
        channels = self.draw.choice((3, 16, 20))
        size = self.draw.randint(5, 12), self.draw.randint(5, 12)
        self.example = torch.randn(self.draw.choice((4, 5)), channels, *size)
        self.steps: list[Step] = []
        self.shapes: list[Shape] = [(channels, *size)]
        self._append("module", (0,), self._convolution((channels, *size)))
        while len(self.steps) < length:
            self._one_more()
        self.hidden = nn.Linear(self.shapes[-1][0], 48, bias=False)  # a norm follows
        self.norm = nn.BatchNorm1d(48)
        self.head = nn.Linear(48, 7)
        self.also = self.draw.randrange(1, len(self.shapes))
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = [x]
        for step in self.steps:
            read = [values[i] for i in step.sources]
            if step.module:
                values.append(self.get_submodule(step.module)(*read))
            elif step.name in OPERATIONS:
                values.append(OPERATIONS[step.name](*read))
            elif step.name == "plus_in_place":
                changed = read[0]
                changed += read[1]
                values.append(changed)
            else:
                values.append(SUMS[step.name](*read))
        vectors = F.relu(self.norm(self.hidden(values[-1].mean((2, 3)))))
        return self.head(vectors), values[self.also]

    # Drawing

    def _one_more(self) -> None:
        recent = range(max(0, len(self.shapes) - 4), len(self.shapes))
        at = self.draw.choice((len(self.shapes) - 1,) * 3 + tuple(recent))
        shape = self.shapes[at]
        kind = self.draw.choice(("block",) * 4 + ("layer",) * 3 + ("operation",) * 4 + ("sum",) * 3)
        if kind == "block":
            self._block(at)
        elif kind == "layer":
            self._append("module", (at,), self._layer(shape))
        elif kind == "operation":
            self._append(self.draw.choice(list(OPERATIONS)), (at,))
        else:
            same = [i for i, other in enumerate(self.shapes) if other == shape]
            self._append(self.draw.choice(list(SUMS)), (at, self.draw.choice(same)))

    def _block(self, at: int) -> None:
        """A convolution with what usually follows, and sometimes a residual connection."""
        shape = self.shapes[at]
        residual = self.draw.random() < 0.3
        conv = nn.Conv2d(shape[0], shape[0], 3, padding=1) if residual else self._convolution(shape)
        order = self.draw.choice(("norm relu", "relu norm", "relu", "norm", "norm relu pool", ""))
        self._append("module", (at,), conv)
        for name in order.split():
            last = self.shapes[-1]
            if name == "norm":
                self._append("module", (-1,), nn.BatchNorm2d(last[0]))
            elif name == "relu":
                self._append("relu", (-1,))
            elif min(last[1:]) > 1:
                self._append("module", (-1,), nn.MaxPool2d(2))
        if residual and self.shapes[-1] == shape and order:
            # Backward of a ReLU needs its result as it was.
            written = () if order.endswith("relu") else ("plus_in_place",) * 2
            self._append(self.draw.choice(("plus", "plus_relu", *written)), (-1, at))

    def _convolution(self, shape: Shape) -> nn.Module:
        pick = self.draw.choice
        kernel, padding = pick((1, 3, 3, (3, 1), 5, 2)), pick((0, 1, 1, 2, (1, 0)))
        stride, dilation = pick((1, 1, 1, 2, (2, 1))), pick((1, 1, 1, 2))
        outputs = pick((16, 17, 24, 32, 40, 48))
        bias = self.draw.random() < 0.5
        return nn.Conv2d(shape[0], outputs, kernel, stride, padding, dilation, bias=bias)

    def _layer(self, shape: Shape) -> nn.Module:
        window, stride, up = self.draw.choice((2, 3)), self.draw.choice((1, 2)), shape[0]
        several: Sequence[nn.Module] = (
            self._convolution(shape), nn.BatchNorm2d(up), nn.GroupNorm(1, up), nn.Dropout(0.3),
            nn.Dropout2d(0.3), nn.MaxPool2d(window, stride, ceil_mode=True), nn.ReLU6(),
            nn.AvgPool2d(window, stride, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(3),
            nn.LeakyReLU(0.1), nn.GELU(), nn.Sigmoid(), nn.PReLU(), nn.Identity(), nn.Hardswish(),
            nn.Conv2d(up, up, 3, padding=1, groups=up), nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        made = self.draw.choice(several)
        return nn.ReLU() if self.plain and isinstance(made, _WITHOUT_KERNEL) else made

    def _append(self, name: str, sources: tuple[int, ...], module: nn.Module | None = None) -> None:
        """One more step, unless it does not fit the shapes."""
        made = tuple(i % len(self.shapes) for i in sources)
        zeros = [torch.zeros(2, *self.shapes[i]) for i in made]
        found: Callable[..., Tensor]
        if module is not None:
            found = module.eval()
        elif name == "plus_in_place":
            found = torch.add
        else:
            found = OPERATIONS[name] if name in OPERATIONS else SUMS[name]
        try:
            shape = tuple(found(*zeros).shape[1:])
        except RuntimeError:
            return
        if min(shape) < 1 or shape[0] > MOST_CHANNELS or max(shape[1:]) > 24:
            return
        if name == "turned" and 1 in shape[1:]:
            return  # PyTorch 2.13's own batch norm has wrong gradients for such channels-last maps
        place = f"layer{len(self.steps)}" if module is not None else ""
        if module is not None:
            self.add_module(place, module.train())
        self.steps.append(Step(name, made, place))
        self.shapes.append(shape)
