"""The recorder: torch.fx, refusing what a graph would silently leave out.

torch.fx records operators on tensors and nothing else. This one notices what else a forward does
and says which module did it, so that the module runs by its own code.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from torch import Tensor, fx, nn

from dsgc.passes.in_place import written_as
from dsgc.passes.patterns import has_hooks
from dsgc.tracing.aliases import writes_state
from dsgc.tracing.ambient import Ambient, ambient, opposite
from dsgc.tracing.blame import is_torch_layer, where
from dsgc.tracing.call_shape import CallShape
from dsgc.tracing.effects import Undone
from dsgc.tracing.questions import compares_types
from dsgc.tracing.state_proxy import StateProxy
from dsgc.tracing.value_proxy import ValueProxy

__all__ = ["Culprit", "Recorder", "unusable_name"]

_MODES = r"no_grad|enable_grad|set_grad|inference_mode|autocast|checkpoint|saved_tensors|save_on"


class Culprit(Exception):  # noqa: N818 - it is raised to leave a forward, not to report a fault
    """A module that has to run by its own code, and why."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        super().__init__(reason)
        self.module = module
        self.reason = reason


class Recorder(fx.Tracer):
    """Records one forward, with qualified names of the whole model.

    Attributes:
        modules: all modules of the model, by name.
        entered: the modules of the user whose code was recorded.
        culprit: a module whose code does what a graph cannot hold.
        makers: the module whose code made a node.
    """

    def __init__(
        self,
        names: dict[nn.Module, str],
        leaves: set[nn.Module],
        call: CallShape,
        turned: nn.Module | None = None,
        effects: Undone | None = None,
    ):
        """`turned` runs under opposite modes; `effects` are looked for after every module."""
        super().__init__()
        self.record_stack_traces = True
        self.names, self.leaves, self.call = names, leaves, call
        self.modules = {name: module for module, name in names.items()}
        self.turned, self.effects = turned, effects
        self.entered: list[nn.Module] = []
        self.running: list[tuple[nn.Module, Ambient]] = []
        self.state: dict[int, tuple[str, Tensor]] = {}
        self.culprit: Culprit | None = None
        self.makers: dict[fx.Node, nn.Module] = {}
        self.thread = threading.get_ident()

    def blame(self, module: nn.Module, reason: str) -> NoReturn:
        """Stop: `module` has to run by its own code."""
        # Kept as well as raised: the user's code may catch it.
        self.culprit = self.culprit or Culprit(module, reason)
        raise self.culprit

    # What torch.fx asks

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.leaves or is_torch_layer(m)

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return self.names[mod]
        except KeyError:
            raise NameError(f"{type(mod).__name__} is not a registered submodule") from None

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if not isinstance(attr_val, Tensor) or threading.get_ident() != self.thread:
            return attr_val
        if not self.state:
            named = (*self.root.named_buffers(), *self.root.named_parameters())
            self.state.update({id(tensor): (name, tensor) for name, tensor in named})
        name, tensor = self.state.get(id(attr_val), ("", None))
        if tensor is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr", name, (), {}, proxy_factory_fn=lambda n: StateProxy(n, self, attr_val)
            )
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        # Generated code would name numpy, which it does not know.
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        # torch.fx patches nn.Module for all threads; this one records its own calls alone.
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        self._check_modes()

        def enter(*args: Any, **kwargs: Any) -> Any:
            if has_hooks(m):
                self.blame(m, "it has hooks, which run with the module's own code only")
            self._check_questions(m)
            with self._entered(m):
                return forward(*args, **kwargs)

        return super().call_module(m, enter, args, kwargs)

    def _check_questions(self, module: nn.Module) -> None:
        if asked := compares_types(module):
            what = "its code compares the type of a value, which a graph does not know"
            self.blame(module, f"{what} {where(module, re.escape(asked))}")

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> fx.Node:
        self._check_modes()
        if kind in ("call_module", "get_attr"):
            self._check_name(kind, str(target))
        if name is None and target == "self":
            name = "self_1"  # a variable called `self` would hide the graph module
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if self.running:
            self.makers[node] = self.running[-1][0]
        if self.running and kind == "call_method" and target in _ABOUT_GRADIENTS:
            module = self.running[-1][0]
            reason = f"its forward calls {target!r}, which is about one tensor and its gradient"
            self.blame(module, f"{reason} {where(module, str(target))}")
        if self.running and writes_state(node):
            module = self.running[-1][0]
            sign = written_as(node.target)
            reason = f"its forward changes a parameter or buffer by {sign!r}"
            self.blame(module, f"{reason} {where(module, re.escape(sign))}")
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self, self.modules, self._refuse)

    def _refuse(self, what: str, pattern: str) -> NoReturn:
        module = self.running[-1][0] if self.running else self.root
        self.blame(module, f"its forward {what} {where(module, pattern)}")

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        slots = [name for name in self.call.slots if name is not None]
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in slots]

        def fn(root: nn.Module, *tensors: Any) -> Any:
            args, kwargs = self.call.arguments(tensors)
            self._check_questions(root)
            with self._entered(root):
                result = root_fn(root, *args, **kwargs)
                kind = _lost_container(result)
                if kind is not None:
                    plain = "dict" if issubclass(kind, dict) else "list"
                    what = f"a {kind.__name__}, which would be a plain {plain} in a graph"
                    self.blame(root, f"its forward returns {what} {where(root, kind.__name__)}")
                return result

        return fn, [self.root, *proxies]

    # What a graph would leave out

    @contextmanager
    def _entered(self, module: nn.Module) -> Iterator[None]:
        if module not in self.entered:
            self.entered.append(module)
        if module is self.turned:
            with opposite():
                yield from self._run(module)
        else:
            yield from self._run(module)

    def _run(self, module: nn.Module) -> Iterator[None]:
        self.running.append((module, ambient()))
        try:
            yield
            self._check_modes()
        finally:
            self.running.pop()
        if self.effects is not None:
            what, pattern = self.effects.effect()
            if what:
                self.blame(module, f"its forward {what} {where(module, pattern)}")

    def _check_modes(self) -> None:
        if not self.running:
            return
        module, before = self.running[-1]
        what = before.difference(ambient())
        if what:
            self.blame(module, f"its forward {what} {where(module, _MODES)}")

    def _check_name(self, kind: str, target: str) -> None:
        """Refuse names that the generated code of a graph cannot have."""
        prefix = self.names[self.root] if kind == "get_attr" else ""
        wrong = unusable_name(f"{prefix}.{target}" if prefix else target)
        if wrong:
            self.blame(self.running[-1][0] if self.running else self.root, wrong)


def unusable_name(target: str) -> str:
    """Why a graph cannot refer to `target`, and what to do; empty if it can."""
    first, *rest = target.split(".")
    taken = hasattr(fx.GraphModule, first) or first in _TAKEN
    wrong = [first] if taken else [n for n in rest if hasattr(nn.Module, n)]
    wrong += [
        name
        for name in (first, *rest)
        if keyword.iskeyword(name) or not name.isprintable() or set(name) & set("\"'\\")
    ]
    if not wrong:
        return ""
    return (
        f"a graph cannot have a module or tensor called {wrong[0]!r} ({target}): rename it to make "
        "it part of one"
    )


def _lost_container(value: Any) -> type | None:
    """The class of a dict or list in a result, if torch.fx would make another one of it."""
    inside: Any = ()
    if isinstance(value, (dict, list)):
        if type(value) not in (dict, list):
            return type(value)
        inside = value.values() if isinstance(value, dict) else value
    elif isinstance(value, tuple):
        inside = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return next((kind for one in inside if (kind := _lost_container(one)) is not None), None)


_TAKEN = frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))


_ABOUT_GRADIENTS = frozenset(
    ("register_hook", "register_post_accumulate_grad_hook", "requires_grad_", "retain_grad")
)
