"""Model -> torch.fx graph. What cannot be traced stays a dense leaf, with the reason kept.

`torch.nn` modules are leaves, so BatchNorm and Dropout keep their mode. A module of the user that
cannot be traced, or that reads `self.training`, becomes a leaf as well and tracing starts again.
"""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from dsgc.errors import TraceError

__all__ = ["CallShape", "ModeDropout", "Traced", "is_torch_layer", "trace", "user_line"]


@dataclass(frozen=True)
class CallShape:
    """How a module is called: where tensors stand in its arguments, and all that is no tensor."""

    spec: pytree.TreeSpec
    slots: tuple[str | None, ...]
    constants: tuple[Any, ...]

    @staticmethod
    def of(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[CallShape, list[torch.Tensor]]:
        """The structure of a call of `module`, and its tensors in order."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        names = _parameter_names(module, args, kwargs)
        slots: list[str | None] = []
        for i, (leaf, name) in enumerate(zip(leaves, names, strict=True)):
            slots.append((name or f"input_{i}") if isinstance(leaf, torch.Tensor) else None)
        constants = tuple(None if isinstance(x, torch.Tensor) else x for x in leaves)
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        return CallShape(spec, tuple(slots), constants), tensors

    @property
    def key(self) -> tuple[object, ...]:
        """Hashable identity of the structure."""
        return (str(self.spec), self.slots, tuple(repr(c) for c in self.constants))


def _parameter_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str | None]:
    """A name for every leaf of (args, kwargs), in the order of tree_flatten."""
    try:
        positional = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        positional = []
    names: list[str | None] = []
    for i, arg in enumerate(args):
        base = positional[i] if i < len(positional) else f"input_{i}"
        count = len(pytree.tree_leaves(arg))
        names += [base] if count == 1 else [f"{base}_{j}" for j in range(count)]
    # tree_flatten keeps a dict's own order.
    for key, value in kwargs.items():
        count = len(pytree.tree_leaves(value))
        names += [key] if count == 1 else [f"{key}_{j}" for j in range(count)]
    return names


@dataclass
class Traced:
    """A traced module. `untraced` maps the dense leaves of the user to the reason for each."""

    graph_module: fx.GraphModule
    untraced: dict[str, str] = field(default_factory=dict)


def is_torch_layer(module: nn.Module) -> bool:
    """Whether calling `module` runs code of torch.nn itself, Sequential excepted."""
    forward = type(module).forward
    where = getattr(forward, "__module__", "") or ""
    return where.startswith(("torch.nn", "torch.ao.nn")) and forward is not nn.Sequential.forward


class _Tracer(fx.Tracer):
    """Records with qualified names of the whole model, whatever part of it is traced."""

    def __init__(self, names: dict[nn.Module, str], leaves: set[nn.Module], call: CallShape):
        super().__init__()
        self.record_stack_traces = True
        self.names = names
        self.leaves = leaves
        self.call = call
        self.entered: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.leaves or is_torch_layer(m):
            return True
        if m not in self.entered:
            self.entered.append(m)
        return False

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return self.names[mod]
        except KeyError:
            raise NameError(f"{type(mod).__name__} is not a registered submodule") from None

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        slots = [name for name in self.call.slots if name is not None]
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in slots]

        def fn(root: nn.Module, *tensors: Any) -> Any:
            supply = iter(tensors)
            leaves = [
                constant if slot is None else next(supply)
                for slot, constant in zip(self.call.slots, self.call.constants, strict=True)
            ]
            args, kwargs = pytree.tree_unflatten(leaves, self.call.spec)
            return root_fn(root, *args, **kwargs)

        return fn, [self.root, *proxies]


def trace(model: nn.Module, path: str, call: CallShape) -> Traced:
    """Trace the submodule `path` of `model` ("" is the model itself) as it is called by `call`.

    Targets in the graph are qualified from `model`, whose tensors the graph module shares.

    Raises:
        TraceError: the code of the module `path` itself cannot be traced; says where and why.
    """
    root = model.get_submodule(path)
    if path and is_torch_layer(root):
        return Traced(fx.GraphModule(model, _call_alone(path, call), class_name="DenseGraph"))
    names = {module: name for name, module in model.named_modules()}
    untraced: dict[nn.Module, str] = {}
    while True:
        try:
            graph, dropouts = _trace_both_modes(model, root, names, untraced, call)
        except _ReaderFoundError as found:
            untraced[found.module] = found.reason
            continue
        result = fx.GraphModule(model, graph, class_name="DenseGraph")
        for node in dropouts:
            _follow_owner(result, node, model, path)
        result.recompile()
        return Traced(result, {names[module]: reason for module, reason in untraced.items()})


def _call_alone(path: str, call: CallShape) -> fx.Graph:
    """A graph that calls one module of torch.nn."""
    graph = fx.Graph()
    leaves = [
        constant if slot is None else graph.placeholder(slot)
        for slot, constant in zip(call.slots, call.constants, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(leaves, call.spec)
    graph.output(graph.call_module(path, args, kwargs))
    return graph


class _ReaderFoundError(Exception):
    """A module that has to become a leaf."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        super().__init__(reason)
        self.module = module
        self.reason = reason


def _trace_both_modes(
    model: nn.Module,
    root: nn.Module,
    names: dict[nn.Module, str],
    untraced: dict[nn.Module, str],
    call: CallShape,
) -> tuple[fx.Graph, list[fx.Node]]:
    def run(evaluating: set[nn.Module]) -> tuple[fx.Graph, list[nn.Module]]:
        with _modes(model, evaluating):
            return _trace_once(root, names, set(untraced), call)

    graph, entered = run(set())
    other, _ = run(set(model.modules()))
    dropouts = _mode_dropouts(graph, other)
    if dropouts is None:
        _blame_reader(root, names, graph, entered, run)
    prefix = names[root]
    for node in graph.nodes:
        if node.op == "get_attr" and prefix:
            node.target = f"{prefix}.{node.target}"
    return graph, dropouts or []


def _blame_reader(
    root: nn.Module,
    names: dict[nn.Module, str],
    graph: fx.Graph,
    entered: list[nn.Module],
    run: Callable[[set[nn.Module]], tuple[fx.Graph, list[nn.Module]]],
) -> None:
    """Find the module whose code depends on its own `training` flag; innermost first."""
    expected = signature(graph)
    for module in sorted(entered, key=lambda m: -names[m].count(".")):
        other = run({module})[0]
        if signature(other) != expected and _mode_dropouts(graph, other) is None:
            reason = f"its forward does other things in training than in eval mode {_where(module)}"
            raise _ReaderFoundError(module, reason)
    name = names[root] or type(root).__name__
    raise TraceError(
        f"{name}: its forward does other things in training than in eval mode {_where(root)}"
    )


def _trace_once(
    root: nn.Module, names: dict[nn.Module, str], leaves: set[nn.Module], call: CallShape
) -> tuple[fx.Graph, list[nn.Module]]:
    tracer = _Tracer(names, leaves, call)
    try:
        return tracer.trace(root), tracer.entered
    except Exception as error:
        module, reason = _explain(error, root, set(names))
        if module is root:
            name = names[root] or type(root).__name__
            raise TraceError(f"{name} cannot be traced: {reason}") from error
        raise _ReaderFoundError(module, f"cannot be traced: {reason}") from error


def _explain(error: BaseException, root: nn.Module, known: set[nn.Module]) -> tuple[nn.Module, str]:
    """The innermost module of the user in whose forward `error` happened, and where it did."""
    culprit, where = root, ""
    for frame, line in _frames(error.__traceback__):
        code = frame.f_code
        # The first argument of a method, whatever it is called.
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and owner in known and not is_torch_layer(owner):
            # Sequential's own forward is torch's code, never the culprit.
            if type(owner).forward is nn.Sequential.forward:
                continue
            if code.co_name == "forward" and owner is not culprit:
                culprit, where = owner, ""
            if owner is culprit:
                text = linecache.getline(code.co_filename, line).strip()
                where = f" at {code.co_filename}:{line}" + (f": `{text}`" if text else "")
    message = " ".join(str(error).split()) or type(error).__name__
    return culprit, f"{type(error).__name__}: {message}{where}"


def _frames(traceback: TracebackType | None) -> Iterator[tuple[Any, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _where(module: nn.Module) -> str:
    """File and line of a module's forward; the line that reads `training` where one is seen."""
    try:
        lines, first = inspect.getsourcelines(type(module).forward)
        file = inspect.getsourcefile(type(module).forward) or "?"
    except (OSError, TypeError):
        return ""
    offset = next((i for i, text in enumerate(lines) if "training" in text), 0)
    return f"({file}:{first + offset})"


@contextmanager
def _modes(model: nn.Module, evaluating: set[nn.Module]) -> Iterator[None]:
    """All modules in training mode but those in `evaluating`; what was is restored."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = module not in evaluating
        yield
    finally:
        for module, mode in before:
            module.training = mode


def signature(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """What a graph does, comparable: operations, targets and arguments without node names."""
    place = {node: i for i, node in enumerate(graph.nodes)}

    def plain(value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: f"%{place[node]}")

    return [
        (node.op, str(node.target), repr(plain(node.args)), repr(plain(node.kwargs)))
        for node in graph.nodes
    ]


_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
)


def _dropout_arguments(node: fx.Node) -> dict[str, Any] | None:
    if node.op != "call_function" or node.target not in _DROPOUTS:
        return None
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _mode_dropouts(graph: fx.Graph, other: fx.Graph) -> list[fx.Node] | None:
    """The functional dropouts in which alone two graphs differ; None if they differ otherwise."""
    if len(graph.nodes) != len(other.nodes):
        return None
    found = []
    for i, (mine, theirs) in enumerate(zip(signature(graph), signature(other), strict=True)):
        if mine == theirs:
            continue
        node, twin = list(graph.nodes)[i], list(other.nodes)[i]
        here, there = _dropout_arguments(node), _dropout_arguments(twin)
        if here is None or there is None or node.target is not twin.target:
            return None
        here.pop("training"), there.pop("training")
        if {k: str(v) for k, v in here.items()} != {k: str(v) for k, v in there.items()}:
            return None
        found.append(node)
    return found


class ModeDropout(nn.Module):
    """`F.dropout(x, p, training=owner.training)` of a forward, following its owner's mode."""

    def __init__(self, owner: nn.Module, function: Callable[..., torch.Tensor], p: float) -> None:
        super().__init__()
        self._owner = (owner,)  # a tuple, so that the owner is not registered a second time
        self.function = function
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop entries while the owner is in training mode."""
        return self.function(x, self.p, self._owner[0].training)


def _follow_owner(gm: fx.GraphModule, node: fx.Node, model: nn.Module, path: str) -> None:
    arguments = _dropout_arguments(node)
    if arguments is None:
        return
    stack = node.meta.get("nn_module_stack") or {path: None}
    owner = model.get_submodule(next(reversed(stack)).split("@")[0])
    target = f"dsgc_dropout.{node.name}"
    function: Any = node.target
    gm.add_submodule(target, ModeDropout(owner, function, arguments["p"]))
    node.op, node.target = "call_module", target
    node.args, node.kwargs = (arguments["input"],), {}


def user_line(node: fx.Node) -> str:
    """`file:line` of the user's code that made `node`, or the empty string."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    compiler = Path(__file__).parent
    inside, models = (str(Path(torch.__file__).parent), str(compiler)), str(compiler / "zoo")
    mine = [
        f"{file}:{line}"
        for file, line in places
        if file.startswith(models) or not file.startswith(inside)
    ]
    return mine[-1] if mine else ""
