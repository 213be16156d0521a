"""Lowering never changes results: both graphs agree in float64, whatever the model does."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from tests.passes.agreement import assert_graphs_agree, compiled, targets

X = torch.randn(3, 5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
SPARSE = {"re:.*conv.*": 0.6}
Build = Callable[[], nn.Module]


def conv(cin: int = 16, cout: int = 20, kernel: int = 3, **how: object) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, **{"padding": kernel // 2, **how})  # type: ignore[arg-type]


class Net(nn.Module):
    """stem (dense) -> conv1 (sparse) -> middle -> conv2 (sparse) -> head (dense)."""

    def __init__(self, *middle: nn.Module, width: int = 20) -> None:
        super().__init__()
        self.stem = nn.Conv2d(5, 16, 3, padding=1)
        self.conv1 = conv()
        self.middle = nn.Sequential(*middle)
        self.conv2 = conv(width, 24)
        self.head = nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.middle(self.conv1(x))
        return self.head(F.relu(self.conv2(x)))  # type: ignore[no-any-return]


MIDDLES: dict[str, Build] = {
    "nothing": nn.Identity,
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "norm, relu": lambda: nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(inplace=True)),
    "relu, norm": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(20)),
    "norm, norm": lambda: nn.Sequential(nn.BatchNorm2d(20), nn.BatchNorm2d(20)),
    "relu, norm, relu": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(20), nn.ReLU()),
    "norm without affine": lambda: nn.BatchNorm2d(20, affine=False),
    "norm without statistics": lambda: nn.BatchNorm2d(20, track_running_stats=False),
    "norm with cumulative average": lambda: nn.BatchNorm2d(20, momentum=None),
    "norm, pooling": lambda: nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2)),
    "overlapping pooling": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "pooling in ceil mode": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "average pooling": lambda: nn.Sequential(nn.BatchNorm2d(20), nn.AvgPool2d(3, 2, 1)),
    "average without padding": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "pooling, norm": lambda: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(20)),
    "dilated pooling": lambda: nn.MaxPool2d(2, dilation=2),
    "other divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
    "adaptive pooling, nothing to do": lambda: nn.AdaptiveAvgPool2d(8),
    "adaptive pooling": lambda: nn.AdaptiveAvgPool2d(4),
    "upsampling": lambda: nn.Upsample(scale_factor=2),
    "dropout": nn.Dropout,
    "dropout of channels": lambda: nn.Dropout2d(0.3),
    "sigmoid": nn.Sigmoid,
    "prelu": lambda: nn.PReLU(20),
    "group norm": lambda: nn.GroupNorm(4, 20),
    "softmax": lambda: nn.Softmax2d(),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_graphs_agree(name: str) -> None:
    sparse = compiled(Net(MIDDLES[name]()).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)


ACTIVATIONS = [
    nn.CELU(), nn.ELU(), nn.GELU(), nn.Hardshrink(), nn.Hardswish(), nn.Hardtanh(), nn.LeakyReLU(),
    nn.Mish(), nn.ReLU6(), nn.SELU(), nn.SiLU(inplace=True), nn.Softshrink(), nn.Softsign(),
    nn.Tanh(), nn.Tanhshrink(),
]  # fmt: skip


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: type(act).__name__)
def test_activation_functions_act_on_packed_values(act: nn.Module) -> None:
    sparse = compiled(Net(nn.BatchNorm2d(20), act).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)
    # The one unpack is that of the dense head.
    assert targets(sparse.lowered_graph).count("unpack") == 1


@pytest.mark.parametrize("name", ["hardtanh", "hardsigmoid", "clamp"])
def test_functions_that_move_zero_unpack(name: str) -> None:
    acts: dict[str, nn.Module] = {
        "hardtanh": nn.Hardtanh(0.5, 1.0),
        "hardsigmoid": nn.Hardsigmoid(),
        "clamp": nn.Threshold(0.1, 0.2),
    }
    sparse = compiled(Net(acts[name]).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)


@pytest.mark.parametrize("block", [1, 8, 16, 32])
@pytest.mark.parametrize("scope", ["position", "sample", "batch"])
def test_blocks_and_scopes(block: int, scope: str) -> None:
    middle = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2))
    sparse = compiled(Net(middle).double(), X, rules=SPARSE, block=block, scope=scope)
    assert_graphs_agree(sparse, X)


@pytest.mark.parametrize("selector", ["drs", "oracle", "random"])
@pytest.mark.parametrize("stats", ["active", "all"])
def test_selectors_and_statistics(selector: str, stats: str) -> None:
    net = Net(nn.BatchNorm2d(20), nn.ReLU()).double()
    sparse = compiled(net, X, rules=SPARSE, block=8, selector=selector, bn_stats=stats)
    assert_graphs_agree(sparse, X)


@pytest.mark.parametrize(
    "how",
    [
        {"kernel": 1},
        {"kernel": 5, "stride": 2, "padding": 2},
        {"kernel": 3, "dilation": 2, "padding": 2},
        {"kernel": 3, "padding": 0},
        {"kernel": 3, "padding": "same"},
        {"kernel": 3, "padding": "valid"},
        {"kernel": (3, 1), "padding": (1, 0), "stride": (2, 1)},
        {"kernel": 3, "bias": False},
    ],
    ids=str,
)
def test_windows(how: dict[str, object]) -> None:
    net = Net(nn.ReLU())
    kernel = how.pop("kernel")
    net.conv1 = nn.Conv2d(16, 20, kernel, **how)  # type: ignore[arg-type]
    net.conv2 = nn.Conv2d(20, 24, kernel, **how)  # type: ignore[arg-type]
    sparse = compiled(net.double(), X, rules=SPARSE, block=8)
    assert [d.name for d in sparse.decisions.values() if d.sparse] == ["conv1", "conv2"]
    assert_graphs_agree(sparse, X)


class Residual(nn.Module):
    def __init__(self, join: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.join = join
        self.stem = conv(5, 16)
        self.conv1, self.norm1 = conv(16, 16), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = conv(16, 16), nn.BatchNorm2d(16)
        self.head = conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.head(F.relu(self.join(y, x)))  # type: ignore[no-any-return]


def _cat(y: Tensor, x: Tensor) -> Tensor:
    return torch.cat([y, x, y], 1)


@pytest.mark.parametrize(
    ("join", "width"), [(operator.add, 16), (operator.iadd, 16), (operator.mul, 16), (_cat, 48)]
)
def test_joins_unpack(join: Callable[..., Tensor], width: int) -> None:
    sparse = compiled(Residual(join, width).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)


class Stream(nn.Module):
    """A residual stream whose blocks `join` a branch."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join
        self.stem, self.conv1, self.norm1 = conv(5, 16), conv(16, 16), nn.BatchNorm2d(16)
        self.conv2, self.conv3 = conv(16, 16), conv(16, 16, 1)
        self.head = conv(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.join(self.norm1(self.conv1(x)), x)
        return self.head(self.join(x + self.conv3(x), self.conv2(x)))  # type: ignore[no-any-return]


def _twice(a: Tensor, b: Tensor) -> Tensor:
    total = a + b
    return F.relu(total) + total


@pytest.mark.parametrize(
    ("join", "clamped"),
    [
        (lambda a, b: F.relu(a + b), 2),
        (lambda a, b: F.relu(torch.add(a, b), inplace=True), 2),
        (lambda a, b: F.relu_(torch.add(a, b)), 2),
        (lambda a, b: a.add_(b).relu_(), 0),
        (operator.add, 0),
        (_twice, 0),
        (lambda a, b: F.relu(torch.add(a, b, alpha=0.5)), 0),
    ],
)
def test_residual_streams_are_added_in_one_pass(
    join: Callable[[Tensor, Tensor], Tensor], clamped: int
) -> None:
    sparse = compiled(Stream(join).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)
    sums = [n for n in sparse.lowered_graph.graph.nodes if "residual_add" in str(n.target)]
    assert sum(n.args[-1] for n in sums) == clamped
    assert sums


class Named(nn.Module):
    """Code of its own, kept as a module by its hook."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - 2 * b


def test_modules_are_not_what_they_are_called() -> None:
    class Model(Stream):
        def __init__(self) -> None:
            super().__init__(operator.add)
            self.add = Named()
            self.add.register_forward_hook(lambda module, inputs, result: result + 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.head(self.add(self.conv2(x), x))  # type: ignore[no-any-return]

    sparse = compiled(Model().double(), X, rules={"conv2": 0.6}, block=8)
    assert_graphs_agree(sparse, X)
    targets_of = [str(n.target) for n in sparse.lowered_graph.graph.nodes]
    assert "add" in targets_of
    assert not any("residual_add" in target for target in targets_of)


@pytest.mark.parametrize("block", [1, 32])
def test_blocks_that_are_not_whole_are_added_otherwise(block: int) -> None:
    sparse = compiled(Stream(operator.add).double(), X, rules=SPARSE, block=block)
    assert_graphs_agree(sparse, X)
    assert not any("residual_add" in str(n.target) for n in sparse.lowered_graph.graph.nodes)


def test_value_changed_in_place_is_read_after_the_change() -> None:
    class Alias(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(F.relu(self.stem(x)))
            z = F.relu_(y)
            return self.head(self.conv2(y + z))  # type: ignore[no-any-return]

    model = Alias().double()
    sparse = compiled(model, X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)
    # y is z: what is added is twice the rectified value, not y + relu(y).
    add = next(n for n in sparse.semantic_graph.graph.nodes if n.target is operator.add)
    assert add.args[0] is add.args[1]


def test_dense_norm_and_relu_are_left_to_the_sparse_convolution() -> None:
    class Deferring(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.stem(x)))
            return self.head(self.conv2(self.conv1(x)))  # type: ignore[no-any-return]

    sparse = compiled(Deferring().double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)
    assert "norm" not in targets(sparse.lowered_graph)
    assert "relu" not in targets(sparse.lowered_graph)


class Pooled(nn.Module):
    """stem (dense) -> after -> conv1 (sparse) and around it: so networks for large images begin."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__()
        self.stem, self.after = nn.Conv2d(5, 16, 3, padding=1), nn.Sequential(*after)
        self.conv1, self.norm1 = conv(16, 16), nn.BatchNorm2d(16)
        self.head = conv(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.stem(x))
        return self.head(F.relu(self.norm1(self.conv1(x)) + x))  # type: ignore[no-any-return]


POOLED: dict[str, tuple[Build, list[str]]] = {
    "norm, relu, pool": (
        lambda: nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        ["PackedBatchNorm", "max_pool2d"],
    ),
    "norm, pool, relu": (
        lambda: nn.Sequential(nn.BatchNorm2d(16), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()),
        ["PackedBatchNorm", "max_pool2d", "ReLU"],
    ),
    "relu, norm, pool": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d((3, 1))),
        ["PackedBatchNorm", "max_pool2d"],
    ),
    "norm, relu, averages": (
        lambda: nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)),
        ["BatchNorm2d", "ReLU", "AvgPool2d"],
    ),
    "norm, relu, two pools": (
        lambda: nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2)),
        ["BatchNorm2d", "ReLU", "MaxPool2d", "MaxPool2d"],
    ),
}


@pytest.mark.parametrize("name", POOLED)
def test_dense_norm_and_relu_are_left_to_the_pooling(name: str) -> None:
    build, expected = POOLED[name]
    sparse = compiled(Pooled(build()).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)
    kinds = [
        type(sparse.lowered_graph.get_submodule(str(node.target))).__name__
        if node.op == "call_module"
        else str(getattr(node.target, "__name__", node.target)).partition(".")[0]
        for node in sparse.lowered_graph.graph.nodes
    ]
    first = kinds.index("PackedSelection")
    own = {"PackedBatchNorm", "max_pool2d", "BatchNorm2d", "ReLU", "AvgPool2d", "MaxPool2d"}
    assert [kind for kind in kinds[:first] if kind in own] == expected


class Classifier(nn.Module):
    def __init__(
        self, flatten: Callable[[Tensor], Tensor], middle: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = conv(5, 20)
        self.pool = nn.MaxPool2d(2)
        self.flatten = flatten
        self.middle = middle or nn.Identity()
        self.fc_conv = nn.Linear(20 * 16, 40)
        self.norm = nn.BatchNorm1d(40)
        self.fc = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.fc_conv(self.middle(self.flatten(x)))
        return self.fc(F.relu(self.norm(x)))  # type: ignore[no-any-return]


FLATTENS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.Flatten(),
    "function": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(-1, 20 * 16),
    "shape": lambda x: x.view(x.shape[0], 20 * 16),
}


@pytest.mark.parametrize("name", FLATTENS)
def test_flatten_and_linear_stay_packed(name: str) -> None:
    sparse = compiled(Classifier(FLATTENS[name]).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)
    made = targets(sparse.lowered_graph)
    assert made.count("conv2d") == 2
    assert made.count("unpack") == 1
    assert_graphs_agree(sparse, X[:2])


def test_dropout_between_flatten_and_linear() -> None:
    sparse = compiled(Classifier(nn.Flatten(), nn.Dropout()).double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 3, 2, 5)], ids=str)
def test_rows(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    model = nn.Sequential(
        nn.Linear(5, 24),
        nn.ReLU(),
        nn.Linear(24, 40),
        nn.GELU(),
        nn.Linear(40, 20),
        nn.Linear(20, 3),
    ).double()
    sparse = compiled(model, x, rules={"re:[024]": 0.5}, block=8)
    assert_graphs_agree(sparse, x)
    assert targets(sparse.lowered_graph).count("unpack") == 1


def test_rows_with_norm() -> None:
    x = torch.randn(7, 5, dtype=torch.float64)
    model = nn.Sequential(
        nn.Linear(5, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)
    ).double()
    sparse = compiled(model, x, rules={"0": 0.5}, block=8)
    assert_graphs_agree(sparse, x)
    assert "dsgc_norm._1" in targets(sparse.lowered_graph)


def test_norm_over_tokens_stays_dense() -> None:
    """BatchNorm1d on [N, C, L] normalises over C, which is not what was selected."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc_conv, self.norm, self.fc = nn.Linear(5, 24), nn.BatchNorm1d(3), nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(self.fc_conv(x)))  # type: ignore[no-any-return]

    x = torch.randn(4, 3, 5, dtype=torch.float64)
    sparse = compiled(Tokens().double(), x, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, x)
    assert "norm" in targets(sparse.semantic_graph)


def test_channels_last_layout_of_rows_is_no_map() -> None:
    """A linear layer on [N, H, W, C] between permutations (ConvNeXt)."""

    class Permuting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc_conv = nn.Linear(20, 20)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(self.stem(x)).permute(0, 2, 3, 1)
            x = F.gelu(self.fc_conv(x)).permute(0, 3, 1, 2)
            return self.head(self.conv2(x))  # type: ignore[no-any-return]

    sparse = compiled(Permuting().double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)


def test_global_mean() -> None:
    class Mean(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv1(self.stem(x)).relu().mean((2, 3))  # type: ignore[no-any-return]

    sparse = compiled(Mean().double(), X, rules={"conv1": 0.5}, block=8)
    assert_graphs_agree(sparse, X)


def test_layer_called_twice() -> None:
    class Twice(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv_shared = conv(20, 20)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(self.stem(x))
            x = self.conv_shared(F.relu(self.conv_shared(x)))
            return self.head(self.conv2(x))  # type: ignore[no-any-return]

    sparse = compiled(Twice().double(), X, rules=SPARSE, block=8)
    assert [d.site for d in sparse.decisions.values() if d.name == "conv_shared"] == [
        "conv_shared",
        "conv_shared#2",
    ]
    assert_graphs_agree(sparse, X)


def test_shared_pool_window() -> None:
    sparse = compiled(
        Net(nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2)).double(),
        X,
        rules=SPARSE,
        block=8,
        share_pool=True,
    )
    settings = sparse.decisions["conv1"].settings
    assert settings is not None
    assert settings.tile == (2, 2)
    second = sparse.decisions["conv2"].settings
    assert second is not None
    assert second.tile == (1, 1)
    assert_graphs_agree(sparse, X)


def test_first_sparse_layer_reads_the_input() -> None:
    model = nn.Sequential(conv(5, 20), nn.ReLU(), nn.Conv2d(20, 3, 1)).double()
    assert_graphs_agree(compiled(model, X, rules={"0": 0.5}, block=8), X)


def test_functional_convolution_stays_dense() -> None:
    class Functional(Net):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(20, 20, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(self.conv1(self.stem(x)), self.weight)
            return self.head(self.conv2(x))  # type: ignore[no-any-return]

    sparse = compiled(Functional().double(), X, rules=SPARSE, block=8)
    assert_graphs_agree(sparse, X)
    reasons = [d.reason for d in sparse.decisions.values() if d.kind == "conv2d"]
    assert reasons == ["it is called as a function (only modules can be sparse)"]


def test_gradcheck_in_float64() -> None:
    net = nn.Sequential(
        nn.Conv2d(5, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 2, 1)
    ).double()
    x = X[:2, :, :6, :6]
    sparse = compiled(net, x, rules={"0": 0.5}, block=8)
    with sparse.hold_selection():
        for graph in (sparse.semantic_graph, sparse.lowered_graph):
            parameters = list(sparse.parameters())

            def loss(*tensors: Tensor, graph: nn.Module = graph) -> Tensor:
                return graph(x).square().sum()  # type: ignore[no-any-return]

            for p in parameters:
                p.requires_grad_()
            assert torch.autograd.gradcheck(loss, tuple(parameters), fast_mode=True)


def test_graphs_print() -> None:
    sparse = compiled(Net(nn.ReLU()).double(), X, rules=SPARSE, block=8)
    assert "masked_conv2d" in sparse.semantic_graph.code
    assert "torch.ops.dsgc.conv2d" in sparse.lowered_graph.code
    assert isinstance(sparse, dsgc.SparseModule)


@pytest.mark.parametrize(
    ("order", "ranking", "follows"),
    [("bn", "normalized", True), ("bn", "raw", False), ("relu-bn", "normalized", False)],
)
@pytest.mark.parametrize("selector", ["svd", "drs", "oracle"])
def test_ranking_follows_the_norm_that_reads_the_layer(
    order: str, ranking: str, follows: bool, selector: str
) -> None:
    norm = nn.BatchNorm2d(20)
    middle = (norm, nn.ReLU()) if order == "bn" else (nn.ReLU(), norm)
    config = dsgc.SparsityConfig(rules=SPARSE, block=8, ranking=ranking, selector=selector)
    sparse = dsgc.compile(Net(*middle).double(), config=config).eval()
    before = sparse.selections(X)["conv1"]
    with torch.no_grad():
        norm.bias[:8] = -100.0  # nothing of the first block is left by the ReLU
        norm.bias[8:] = 100.0
    after = sparse.selections(X)["conv1"]
    assert before[:, 0].any()
    assert after[:, 0].any() != follows
