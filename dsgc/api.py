"""The entry point of dsgc."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsgc.acceptable import check_model, check_rules, unwrapped
from dsgc.config import SparsityConfig
from dsgc.errors import ConfigError
from dsgc.example_inputs import positional
from dsgc.module import SparseModule
from dsgc.stand_in import copy_of

__all__ = ["compile", "release_memory", "settled"]

_BACKENDS = ("auto", "tvm", "reference")


def compile(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    config: SparsityConfig | None = None,
    example_inputs: Tensor | tuple[Any, ...] | list[Any] | None = None,
    backend: str = "auto",
) -> SparseModule:
    """Make a dense model sparse, for training and inference.

    The model itself is left as it is; the result shares its parameters.

    Args:
        model: any module; DistributedDataParallel, DataParallel and torch.compile are taken off.
        sparsity: fraction of neurons left out, 0.8 if neither it nor `config` is given.
        config: all settings, the sparsity among them.
        example_inputs: positional inputs of the model. With them graphs are built at once, without
            them at the first call.
        backend: "tvm" (generated kernels: CPU, float32), "reference" (plain PyTorch on dense
            tensors), or "auto": tvm where it can be had, else reference.

    Raises:
        ConfigError: a setting has an impossible value.
        InputError: the model does not take `example_inputs`.
        UnknownLayerError: a rule matches no layer, or only layers inside modules of torch whose
            code dsgc does not enter. A layer that turns out to be impossible at the first call
            (grouped, parametrized) stays dense, with a warning if a rule asked for it.
        UnsupportedError: a parameter has no shape yet, or a tensor of the model cannot be copied.
        NothingToSparsifyError: no layer is worth it (now, or at the first call).
    """
    if backend not in _BACKENDS:
        allowed = ", ".join(repr(name) for name in _BACKENDS)
        raise ConfigError(f"backend={backend!r} is not possible: one of {allowed}", "backend")
    model, config = settled(model, sparsity, config)
    sparse = SparseModule(copy_of(model), config, backend)
    if example_inputs is not None:
        sparse._prepare(positional(example_inputs))
    return sparse


def settled(
    model: nn.Module, sparsity: float | None, config: SparsityConfig | None
) -> tuple[nn.Module, SparsityConfig]:
    """The dense model and the settings that `compile` and `explain` mean by their arguments.

    Raises:
        ConfigError, UnknownLayerError, NothingToSparsifyError, UnsupportedError: see `compile`.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, not {type(model).__name__}", "model")
    if config is not None and not isinstance(config, SparsityConfig):
        raise ConfigError(f"config must be a SparsityConfig, not {type(config).__name__}", "config")
    if config is not None and sparsity not in (None, config.sparsity):
        raise ConfigError(
            f"give either sparsity or config, not both: {sparsity} is not the {config.sparsity} "
            "of config",
            "sparsity",
        )
    if config is None:
        config = SparsityConfig() if sparsity is None else SparsityConfig(sparsity=sparsity)
    model = unwrapped(model)
    if isinstance(model, SparseModule):
        model = model.to_dense()
    check_model(model)
    check_rules(model, config)
    return model, config


def release_memory() -> int:
    """Give memory that packed kernels keep for their next results back to the system.

    Between steps dsgc holds at most half as much again as was in use at once, because
    taking memory anew costs more than most kernels. Worth calling after an unusually large batch.

    Returns:
        The bytes given back; 0 if no kernel has run yet.
    """
    from dsgc.codegen import release_memory

    return release_memory()
