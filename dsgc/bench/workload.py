"""What is measured: a model, its data, and how it is made sparse."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dsgc import zoo
from dsgc.config import Block, SparsityConfig
from dsgc.errors import ConfigError
from dsgc.measure import channels_last

__all__ = ["Mode", "Workload"]

Mode = Literal["train", "infer"]

# SparsityConfig excludes 0, where nothing is to be done; a bench may well ask what dsgc costs then.
_LEAST_SPARSITY = 1e-6


@dataclass(frozen=True)
class Workload:
    """One row of a bench.

    Attributes:
        model: a name of `dsgc.zoo`, or `package.module:callable`. The callable is called without
            arguments and returns an `nn.Module` that gives logits [batch, classes].
        batch: samples of a step.
        sparsity: fraction of neurons left out, at least 0 and below 1.
        image_size: height and width of the images; None takes the network's own. Zoo only.
        classes: number of outputs; None takes the network's own. Needed for a callable.
        width: multiplies the network's channels. Zoo only.
        threads: of torch and of the generated kernels; None leaves torch's number.
        mode: "train" (forward, cross-entropy, backward, SGD with momentum) or "infer".
        input_shape: of one sample, such as (3, 32, 32). Needed for a callable, and only there.
        block: channels selected together; None is dsgc's "auto".
        seed: of parameters and data.

    Raises:
        ConfigError: a value is not possible; `field` names it.
    """

    model: str
    batch: int = 64
    sparsity: float = 0.8
    image_size: int | None = None
    classes: int | None = None
    width: float = 1.0
    threads: int | None = None
    mode: Mode = "train"
    input_shape: tuple[int, ...] | None = None
    block: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ConfigError(
                f"sparsity {self.sparsity:g} is not possible: it must be at least 0 and below 1",
                "sparsity",
            )
        for name in ("batch", "threads", "classes", "image_size", "width"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(
                    f"{name} {value} is not possible: it must be positive and finite", name
                )
        if self.input_shape is not None and (not self.input_shape or min(self.input_shape) < 1):
            raise ConfigError(
                f"input shape {self.input_shape} is not possible: it takes positive numbers",
                "input_shape",
            )
        self.config()
        if ":" in self.model:
            self._check_callable()
        else:
            self._check_zoo()

    def _check_callable(self) -> None:
        for name in ("input_shape", "classes"):
            if getattr(self, name) is None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{self.model} is not a network of the zoo: say what it reads and gives with "
                    f"--input-shape and --classes ({option} is missing)",
                    name,
                )
        if self.image_size is not None or self.width != 1:
            raise ConfigError(
                f"width and image size are for networks of the zoo; {self.model} is called as it is"
            )

    def _check_zoo(self) -> None:
        if self.model not in zoo.NAMES:
            raise ConfigError(
                f"no network is called {self.model!r}; there are: {', '.join(zoo.NAMES)}; a model "
                "of your own is given as package.module:callable",
                "model",
            )
        if self.input_shape is not None:
            raise ConfigError(
                f"{self.model} reads images of its own kind: --image-size sets their size",
                "input_shape",
            )

    @property
    def label(self) -> str:
        """`vgg8-w0.5-b64`: the row without sparsity, mode and threads."""
        size = f"-{self.image_size}px" if self.image_size else ""
        size += f"-w{self.width:g}" if self.width != 1 else ""
        return f"{self.model}{size}-b{self.batch}"

    @property
    def name(self) -> str:
        """`vgg8-b64-s80`, what the row is called; inference ends with `-infer`."""
        end = "-infer" if self.mode == "infer" else ""
        return f"{self.label}-s{round(100 * self.sparsity)}{end}"

    def with_changes(self, **changes: object) -> Workload:
        """The same with every change that is not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)  # type: ignore[arg-type]

    def config(self) -> SparsityConfig:
        """What `dsgc.compile` is asked for."""
        block: Block = "auto" if self.block is None else self.block
        return SparsityConfig(sparsity=max(self.sparsity, _LEAST_SPARSITY), block=block)

    def build(self) -> nn.Module:
        """The dense model in channels-last order, with the parameters that the seed gives.

        Raises:
            ConfigError: it cannot be made, or does not give [batch, classes] for the data.
        """
        torch.manual_seed(self.seed)
        if ":" in self.model:
            model = _call(self.model)
        else:
            try:
                model = zoo.build(
                    self.model,
                    classes=self.classes,
                    width=self.width,
                    image_size=self.image_size,
                )
            except (ValueError, TypeError, RuntimeError) as error:
                raise ConfigError(f"{self.label} cannot be built: {error}", "model") from error
        self._try_out(model)
        return channels_last(model)

    def data(self) -> tuple[Tensor, Tensor]:
        """Random inputs [batch, ...], images in channels-last order, and labels [batch]."""
        torch.manual_seed(self.seed + 1)
        shape, classes = self._shape_and_classes()
        try:
            inputs = torch.randn(self.batch, *shape)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"a batch of {self.batch} cannot be made: {reason}", "batch"
            ) from error
        labels = torch.randint(classes, (self.batch,))
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, labels

    def _shape_and_classes(self) -> tuple[tuple[int, ...], int]:
        if self.input_shape is not None and self.classes is not None:
            return self.input_shape, self.classes
        network = zoo.NETWORKS[self.model]
        size = self.image_size or network.image_size
        return (network.in_channels, size, size), self.classes or network.classes

    def _try_out(self, model: nn.Module) -> None:
        """One sample through the model: a wrong shape should fail here, in words."""
        shape, classes = self._shape_and_classes()
        training = model.training
        try:
            with torch.no_grad():
                found = model.eval()(torch.randn(1, *shape))
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"{self.label} cannot read inputs of shape {shape}: {reason}", "input_shape"
            ) from error
        finally:
            model.train(training)
        if not isinstance(found, Tensor) or tuple(found.shape) != (1, classes):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"{self.label} gives {what} for one sample, not (1, {classes})", "classes"
            )


def _call(path: str) -> nn.Module:
    """What `package.module:callable` returns; the current directory is importable."""
    module_name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        made = cast(Callable[[], object], found)()
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path} failed with {type(error).__name__}: {reason}", "model"
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{path} gives a {type(made).__name__}, not a torch.nn.Module", "model")
    if not any(True for _ in made.parameters()):
        raise ConfigError(
            f"{path} gives a model without parameters: nothing to make sparse", "model"
        )
    return made
