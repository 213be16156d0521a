"""What a user gives as example inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dsgc.errors import ConfigError

__all__ = ["positional"]


def positional(inputs: Any, name: str = "example_inputs") -> tuple[Any, ...]:
    """The positional inputs that a tensor, a tuple or a list stands for.

    Raises:
        ConfigError: it is something else; `name` is the argument's.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if not isinstance(inputs, (tuple, list)):
        raise ConfigError(
            f"{name} must be a tensor or a tuple of positional inputs, not "
            f"{type(inputs).__name__}; if the model takes inputs by name, call the compiled module "
            "once instead",
            name,
        )
    return tuple(inputs)
