"""Tracing: what stays dense and why, with the user's file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dsgc
from dsgc.errors import TraceError
from dsgc.tracing.blame import user_line
from dsgc.tracing.call_shape import CallShape
from dsgc.tracing.trace import Traced, trace


def traced(model: nn.Module, *args: Any, **kwargs: Any) -> Traced:
    call, _ = CallShape.of(model, args, kwargs)
    return trace(model, "", call)


def targets(graph: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class DependsOnData(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if x.sum() > 0:
            return x
        return -x


class DependsOnMode(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + 1 if self.training else x


class DropsByFunction(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=self.training)


class Chain(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = Block()
        self.middle = middle
        self.last = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))  # type: ignore[no-any-return]


X = torch.randn(2, 4, 3, 3)


def test_layers_are_leaves_and_results_are_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), Block()).eval()
    result = traced(model, X)
    assert targets(result.graph_module) == ["0", "1", "2", "3.conv"]
    assert result.untraced == {}
    torch.testing.assert_close(result.graph_module(X), model(X))


def test_control_flow_on_data_becomes_a_dense_leaf_with_file_and_line() -> None:
    result = traced(Chain(DependsOnData()), X)
    assert targets(result.graph_module) == ["first.conv", "middle", "last.conv"]
    reason = result.untraced["middle"]
    line = DependsOnData.forward.__code__.co_firstlineno + 2
    assert f"{__file__}:{line}" in reason
    assert "if x.sum() > 0:" in reason


def test_reading_training_becomes_a_dense_leaf() -> None:
    model = Chain(DependsOnMode())
    result = traced(model, X)
    assert targets(result.graph_module) == ["first.conv", "middle", "last.conv"]
    assert "training" in result.untraced["middle"]
    assert __file__ in result.untraced["middle"]
    assert all(module.training for module in model.modules())


def test_functional_dropout_follows_its_module() -> None:
    model = Chain(DropsByFunction())
    result = traced(model, X)
    assert result.untraced == {}
    assert targets(result.graph_module)[1] == "middle.conv"
    model.eval()
    torch.testing.assert_close(result.graph_module(X), model(X))
    model.train()
    assert (result.graph_module(X) != result.graph_module(X)).any()


def test_untraceable_model_raises() -> None:
    with pytest.raises(TraceError, match=r"DependsOnData cannot be traced.*sum"):
        traced(DependsOnData(), X)


def test_model_that_reads_training_raises() -> None:
    with pytest.raises(TraceError, match="training than in eval"):
        traced(DependsOnMode(), X)


def test_innermost_module_is_blamed() -> None:
    inner = nn.Sequential(Chain(DependsOnData()))
    assert list(traced(Chain(inner), X).untraced) == ["middle.0.middle"]


def test_part_of_a_model_keeps_qualified_names() -> None:
    model = Chain(nn.Sequential(Block(), nn.ReLU()))
    call, _ = CallShape.of(model.middle, (X,), {})
    graph = trace(model, "middle", call).graph_module
    assert targets(graph) == ["middle.0.conv", "middle.1"]
    call, _ = CallShape.of(model.first.conv, (X,), {})
    assert targets(trace(model, "first.conv", call).graph_module) == ["first.conv"]


class ManyInputs(nn.Module):
    def forward(
        self, x: Tensor, pair: tuple[Tensor, Tensor], scale: float = 2.0, bias: Tensor | None = None
    ) -> dict[str, Tensor]:
        y = x * scale + pair[0] - pair[1]
        return {"y": y if bias is None else y + bias}


def test_inputs_of_any_structure() -> None:
    model, pair = ManyInputs(), (X + 1, X + 2)
    for args, kwargs in [
        ((X, pair), {}),
        ((X, pair, 3.0), {}),
        ((X,), {"pair": pair, "bias": X}),
    ]:
        call, tensors = CallShape.of(model, args, kwargs)
        result = trace(model, "", call).graph_module(*tensors)
        torch.testing.assert_close(result, model(*args, **kwargs))


def test_nodes_know_the_line_of_the_user() -> None:
    graph = traced(Block(), X).graph_module.graph
    line = Block.forward.__code__.co_firstlineno + 1
    conv = next(node for node in graph.nodes if node.op == "call_module")
    assert user_line(conv) == f"{__file__}:{line}"


def test_a_line_of_dsgc_or_torch_is_none_of_the_user() -> None:
    node = fx.Graph().placeholder("x")
    inside = [Path(dsgc.__file__).with_name("engine.py"), Path(torch.__file__)]
    frames = [f'File "{file}", line {i}, in f' for i, file in enumerate(("net.py", *inside), 1)]
    node.stack_trace = "\n".join(frames)
    assert user_line(node) == "net.py:1"
    node.stack_trace = "\n".join(frames[1:])
    assert user_line(node) == ""
    zoo = Path(dsgc.__file__).parent / "zoo" / "vgg.py"
    node.stack_trace = f'File "{zoo}", line 7, in forward'
    assert user_line(node) == f"{zoo}:7"


def test_parameters_used_directly() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = nn.Sequential(Scaled())
    call, _ = CallShape.of(model[0], (X,), {})
    for path in ("", "0"):
        graph = trace(model, path, call).graph_module
        torch.testing.assert_close(graph(X), X * 3)
        assert dict(graph.named_parameters())["0.scale"] is model[0].scale


def test_buffers_are_read_when_the_graph_runs() -> None:
    class Centred(Block):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - self.mean.view(1, -1, 1, 1) * 2)

    model = Centred()
    result = traced(model, X)
    assert result.untraced == {}
    model.mean.fill_(3.0)
    torch.testing.assert_close(result.graph_module(X), model(X))


def test_sizes_of_buffers_and_parameters_are_known() -> None:
    class Anchored(Block):
        anchors: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("anchors", torch.tensor([[2.0], [3.0]]))
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            for i in range(len(self.anchors)):
                x = x * self.anchors[i]
            for anchor in self.anchors:
                x = x - anchor
            if self.scale.dim() == 1 and self.scale.dtype is torch.float32:
                for i in range(self.scale.size(0) + self.scale.shape[0] + self.anchors.ndim):
                    x = x + self.scale[i % self.scale.numel()]
            return super().forward(x)

    model = Anchored()
    result = traced(model, X)
    assert result.untraced == {}
    with torch.no_grad():
        model.scale.mul_(3)
    model.anchors.add_(1)
    torch.testing.assert_close(result.graph_module(X), model(X))


def test_a_buffer_that_decides_is_control_flow_on_data() -> None:
    class Once(Block):
        ready: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ready", torch.tensor(False))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.ready.item() else x

    assert "ready.item()" in traced(Chain(Once()), X).untraced["middle"]


def test_tensors_made_in_the_code_leave_the_model_alone() -> None:
    class Scales(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor([2.0, 3.0, 4.0])

    class ScalesByMode(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor(2.0 if self.training else 3.0)

    model = Scales()
    before = dict(model.__dict__)
    torch.testing.assert_close(traced(model, X).graph_module(X), model(X))
    assert model.__dict__ == before
    part = nn.Sequential(model)
    call, _ = CallShape.of(model, (X,), {})
    torch.testing.assert_close(trace(part, "0", call).graph_module(X), model(X))
    assert "training" in traced(Chain(ScalesByMode()), X).untraced["middle"]


@pytest.mark.parametrize("name", ["graph", "code", "meta", "_code", "class"])
def test_names_that_a_graph_cannot_have(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._modules[name] = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self._modules[name](x)  # type: ignore[misc,no-any-return]

    with pytest.raises(TraceError, match=f"called '{name}'.*rename it"):
        traced(Named(), X)
    model = Named()
    call, _ = CallShape.of(model, (X,), {})
    for path in (name, f"{name}.conv"):
        with pytest.raises(TraceError, match=f"called '{name}'.*rename it"):
            trace(model, path, call)


@pytest.mark.parametrize("name", ["class", 'a"b', "it's", "two\nlines", "back\\slash"])
def test_a_name_inside_makes_its_module_a_leaf(name: str) -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({name: nn.Conv2d(4, 4, 1)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[name](x)  # type: ignore[no-any-return]

    model = Chain(Keyword())
    result = traced(model, X)
    assert "rename it" in result.untraced["middle"]
    torch.testing.assert_close(result.graph_module(X), model(X))


def test_things_called_self() -> None:
    class Selfish(nn.Module):
        def __init__(this) -> None:  # noqa: N805
            super().__init__()
            this._modules["self"] = Block()

        def forward(this, self: Tensor, **more: Tensor) -> Tensor:  # noqa: N805
            return this._modules["self"](self) + more["class"]  # type: ignore[misc,no-any-return]

    model = Selfish()
    call, tensors = CallShape.of(model, (X,), {"class": X})
    graph = trace(model, "", call).graph_module
    torch.testing.assert_close(graph(*tensors), model(X, **{"class": X}))

    class OwnSelf(nn.Module):
        def __init__(this) -> None:  # noqa: N805
            super().__init__()
            this._parameters["self"] = nn.Parameter(torch.tensor(2.0))

        def forward(this, x: Tensor) -> Tensor:  # noqa: N805
            return x * this._parameters["self"]  # type: ignore[operator]

    torch.testing.assert_close(traced(OwnSelf(), X).graph_module(X), X * 2)
