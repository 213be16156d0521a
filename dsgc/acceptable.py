"""Which models and rules can be compiled, and what to say about those that cannot."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dsgc.config import SparsityConfig
from dsgc.errors import NothingToSparsifyError, UnknownLayerError, UnsupportedError
from dsgc.tracing.blame import is_torch_layer

__all__ = ["check_model", "check_rules", "check_values", "closed_around", "unwrapped"]

_LAYERS = (nn.Conv2d, nn.Linear)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif _torch_compiled(model):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _torch_compiled(module: nn.Module) -> bool:
    # By name, because importing the class takes seconds.
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def check_model(model: nn.Module) -> None:
    """Raise if no sparse module can be made of `model`.

    Raises:
        UnsupportedError: it has lazy parameters, tensors that cannot be copied, or a way of its own
            of being called.
        NothingToSparsifyError: it has no layer, or is one.
    """
    if isinstance(model, _LAYERS):
        raise NothingToSparsifyError(
            f"the model itself is a {type(model).__name__}: dsgc makes layers within a model "
            "sparse; compile torch.nn.Sequential(layer), and name it '0' in a rule"
        )
    if "forward" in vars(model) or type(model).__call__ is not nn.Module.__call__:
        what = "forward was replaced" if "forward" in vars(model) else "class has its own __call__"
        raise UnsupportedError(
            f"the model is not called by its class's forward alone: its {what}, which would be "
            "left out; compile torch.nn.Sequential(model) instead, or the model before that is done"
        )
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if is_lazy(tensor):
                raise UnsupportedError(
                    f"{_dotted(path, name)} of a lazy module has no shape yet: call the model once "
                    "with a batch, then compile it"
                )
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise UnsupportedError(_not_a_leaf(_dotted(path, name)))
    if not any(isinstance(module, _LAYERS) for module in model.modules()):
        raise NothingToSparsifyError("the model has no Conv2d and no Linear layer: nothing to do")


def _not_a_leaf(where: str) -> str:
    return (
        f"{where} was computed from other tensors with gradients, so that the model cannot be "
        "copied. If a weight is pruned, make that permanent with torch.nn.utils.prune.remove; "
        "for torch.nn.utils.weight_norm or spectral_norm use those of "
        "torch.nn.utils.parametrizations; a result that is kept has to be detached"
    )


def check_values(model: nn.Module) -> None:
    """Raise UnsupportedError if a parameter is on the meta device, which has no values."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedError(
                f"parameter {name} is on the meta device and has no values: before the first call "
                "load some with load_state_dict(state, assign=True), or with to_empty(device='cpu')"
                " and load_state_dict(state)"
            )


def check_rules(model: nn.Module, config: SparsityConfig) -> None:
    """Raise UnknownLayerError if a rule means no layer, or only such as cannot be sparse."""
    layers = [name for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    closed = {name: closed_around(model, name) for name in layers}
    aliases = dict(_aliases(model))
    for rule in config.rule_list:
        names = [name for name in layers if rule.matches(name)]
        if not rule.dense and names and all(closed[name] for name in names):
            raise UnknownLayerError(
                f"rule {rule.text!r} names {names[0]!r}, which cannot be sparse: it is "
                f"{closed[names[0]]}",
                "rules",
            )
        other = next((alias for alias in aliases if rule.matches(alias)), None)
        if not names and other is not None:
            raise UnknownLayerError(
                f"rule {rule.text!r} names {other!r}, another name of the layer "
                f"{aliases[other]!r}: use that one",
                "rules",
            )
    config.check_rules(layers)


def _aliases(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Further names of layers that a model has more than once, each with the first."""
    first = {module: name for name, module in model.named_modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _LAYERS) and first[module] != name:
            yield name, first[module]


def closed_around(model: nn.Module, name: str) -> str:
    """Where the layer `name` is, if dsgc does not enter the module around it; else empty."""
    parts = name.split(".")
    for depth in range(len(parts)):
        path = ".".join(parts[:depth])
        module = model.get_submodule(path)
        where = f"inside {path!r}" if path else "inside the model itself"
        if _torch_compiled(module):
            return f"{where}, which torch.compile wraps: compile the model without that"
        plain = type(module).forward is nn.Module.forward  # a container
        if is_torch_layer(module) and not plain:
            return f"{where}, a {type(module).__name__} of torch, whose code dsgc does not enter"
    return ""


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
