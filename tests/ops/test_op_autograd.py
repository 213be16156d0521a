"""The operators as torch sees them: schemas, fakes, gradients, and what is kept for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad

from dsgc.codegen import cpu_functions
from dsgc.errors import UnsupportedError
from dsgc.ops import SPECS, OpSpec, mask_to_selection, register
from dsgc.ops.direct import direct_operators
from dsgc.ops.normalization import PackedBatchNorm
from dsgc.ops.reference import KERNELS
from dsgc.select import project_weight, round_weight, ternary_projection
from tests.ops.cases import ACTS, Namespace, Packed, Source, out_mask

SIZE = (4, 3)
WINDOW = ((2, 1), (1, 1), (1, 1))
POOL = ((3, 2), (2, 2), (1, 0), True, False)
FORMS = [(0, 8), (8, 8), (8, 16), (1, 1), (1, 16), (16, 1)]


def _input(namespace: Namespace, block: int, act: str, batch: int = 2) -> Packed:
    return Source(batch, 10, *SIZE, block, act, 0.6, False, 2).build(namespace.dtype)


def _leaf(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.detach().clone().requires_grad_()
    return x


def _act(namespace: Namespace, block: int, act: str) -> tuple[Any, ...]:
    return tuple(map(_leaf, _input(namespace, block, act).arguments(namespace.ops)))


def _conv_arguments(namespace: Namespace, block: int) -> tuple[Any, ...]:
    """The arguments of conv2d after the activation."""
    weight = _leaf(torch.randn(11, 10, 3, 2, dtype=namespace.dtype))
    bias = _leaf(torch.randn(11, dtype=namespace.dtype))
    selection = mask_to_selection(out_mask(2, 11, (2, 4), block, 1), block == 1)
    return weight, bias, *selection, block, *WINDOW


def _operations(namespace: Namespace) -> dict[str, Callable[[], list[tuple[Any, ...]]]]:
    """Arguments to try, of every operator by name."""
    ops, dtype = namespace.ops, namespace.dtype

    def acts(blocks: tuple[int, ...] = (0, 1, 8)) -> list[tuple[Any, ...]]:
        return [_act(namespace, block, act) for block in blocks for act in ACTS]

    def grads(op: Any, arguments: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [(torch.ones_like(op(*a).detach()), *map(_plain, a)) for a in arguments]

    def conv() -> list[tuple[Any, ...]]:
        return [(*_act(namespace, a, "affine_relu"), *_conv_arguments(namespace, b))
                for a, b in FORMS]  # fmt: skip

    def conv_backward() -> list[tuple[Any, ...]]:
        found = []
        for grad, *rest in grads(ops.conv2d, conv()):
            arguments = (grad, *rest[:8], *rest[9:])
            found += [(*arguments, True, True, True), (*arguments, False, True, False)]
        return found

    def pool() -> list[tuple[Any, ...]]:
        return [(*a, mode, *POOL) for mode in ("max", "avg") for a in acts((1, 8))]

    def pool_backward() -> list[tuple[Any, ...]]:
        found = []
        for arguments in pool():
            plain = tuple(map(_plain, arguments))
            values, *selection = ops.pool2d(*plain)
            found.append((torch.ones_like(values), *plain[:7], *selection, *plain[7:]))
        return found

    def map_pool() -> list[tuple[Any, ...]]:
        return [(*a, *POOL[:4]) for a in acts((0,))]

    def map_pool_backward() -> list[tuple[Any, ...]]:
        found = []
        for arguments in map_pool():
            plain = tuple(map(_plain, arguments))
            y, argmax = ops.max_pool2d(*plain)
            found.append((torch.ones_like(y), *plain[:7], argmax, *plain[7:]))
        return found

    def affine() -> list[tuple[Any, ...]]:
        gain, shift = (_leaf(torch.rand(10, dtype=dtype) + 0.5) for _ in range(2))
        return [(*_act(namespace, block, "identity")[:3], weight, bias, [10, *SIZE], relu, over, 0.1
                 )
                for block in (0, 1, 8) for relu in (True, False) for over in ("active", "all")
                for weight, bias in ((gain, shift), (None, None))]  # fmt: skip

    def affine_backward() -> list[tuple[Any, ...]]:
        found = []
        for arguments in affine():
            plain = tuple(map(_plain, arguments))
            *x, weight, _, size, relu, _, eps = plain
            scale, shift, mean, var, _, count = ops.batch_affine(*plain)
            found += [
                (grad, dscale, shift, *x, weight, mean, var, count, size, relu, eps)
                for grad, dscale in ((None, scale), (torch.ones_like(x[0]), None))
            ]
        return found

    def stem() -> list[tuple[Any, ...]]:
        found = []
        for outputs, bias in ((16, True), (11, False)):
            x = torch.randn(2, 3, *SIZE, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.randn(outputs, 3, 3, 2, dtype=dtype)
            vector = torch.randn(outputs, dtype=dtype) if bias else None
            found.append((_leaf(x), _leaf(weight), _leaf(vector), *WINDOW))
        return found

    def stem_backward() -> list[tuple[Any, ...]]:
        return [(grad, x, weight, *window, *needs)
                for grad, x, weight, _, *window in grads(ops.stem_conv2d, stem())
                for needs in ((True, True, True), (False, True, False))]  # fmt: skip

    def linear() -> list[tuple[Any, ...]]:
        found = []
        for rows, inputs, outputs, bias in ((3, 16, 16, True), (2, 5, 3, False)):
            x = _leaf(torch.randn(rows, inputs, dtype=dtype))
            vector = _leaf(torch.randn(outputs, dtype=dtype)) if bias else None
            found.append((x, _leaf(torch.randn(outputs, inputs, dtype=dtype)), vector))
        return found

    def linear_backward() -> list[tuple[Any, ...]]:
        found = grads(ops.dense_linear, linear())
        return [(grad, x, weight, *needs) for grad, x, weight, _ in found
                for needs in ((True, True, True), (False, True, False))]  # fmt: skip

    def pack() -> list[tuple[Any, ...]]:
        x = _leaf(torch.randn(2, 10, *SIZE, dtype=dtype))
        return [(x, *_input(namespace, block, "relu").selection, block) for block in (1, 8)]

    def residual() -> list[tuple[Any, ...]]:
        found = []
        branches = [*acts((0, 1, 8)), _act(namespace, 2, "affine_relu")]
        for number, (*branch, size) in enumerate(branches):
            shortcut = _leaf(torch.randn(2, 10, *SIZE, dtype=dtype))
            found.append((*map(_leaf, branch), size, shortcut, number % 2 == 0))
        return found

    def residual_backward() -> list[tuple[Any, ...]]:
        found = []
        for arguments in residual():
            plain = tuple(map(_plain, arguments))
            y = ops.residual_add(*plain)
            found.append((torch.ones_like(y), *plain[:7], y))
        return found

    def drs() -> list[tuple[Any, ...]]:
        found = []
        weight = torch.randn(11, 10, 3, 2, dtype=dtype)
        for window in (True, False):
            projection = ternary_projection(60 if window else 10, 8, torch.Generator())
            projected, unit = project_weight(weight, projection, window), None
            if not window:
                projected, unit = round_weight(projected)
            offset = torch.randn(11, dtype=dtype)
            found += [(*_act(namespace, block, "relu"), projection, projected, unit, moved, 11, 8,
                       (3, 2), *WINDOW) for block, moved in ((0, None), (8, offset))]  # fmt: skip
        return found

    scores = torch.randn(24, 5, dtype=dtype)
    return {
        "activate": acts,
        "activate_backward": lambda: grads(ops.activate, acts()),
        "pack": pack,
        "unpack": acts,
        "unpack_backward": lambda: grads(ops.unpack, acts()),
        "conv2d": conv,
        "conv2d_backward": conv_backward,
        "batch_affine": affine,
        "batch_affine_backward": affine_backward,
        "stem_conv2d": stem,
        "stem_conv2d_backward": stem_backward,
        "dense_linear": linear,
        "dense_linear_backward": linear_backward,
        "pool2d": pool,
        "pool2d_backward": pool_backward,
        "max_pool2d": map_pool,
        "max_pool2d_backward": map_pool_backward,
        "residual_add": residual,
        "residual_add_backward": residual_backward,
        "drs_scores": drs,
        "select_winners": lambda: [(_leaf(scores), 2, SIZE, (2, 2), b) for b in (True, False)],
        "select_above": lambda: [(_leaf(scores), scores[0, :2].clone(), s, b)
                                 for s in (True, False) for b in (True, False)],
    }  # fmt: skip


def _plain(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_opcheck(namespace: Namespace, name: str) -> None:
    """torch's own checks: schema, fake against real, registration of the gradient."""
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = _operations(namespace)[name]()
    for case in arguments:
        torch.library.opcheck(getattr(namespace.ops, name), case, test_utils=checks)
    # Through AOTAutograd, with sizes unknown: slow, so for the first and the last case only.
    for case in (arguments[0], arguments[-1]):
        torch.library.opcheck(
            getattr(namespace.ops, name), case, test_utils="test_aot_dispatch_dynamic"
        )


def _gradcheck(op: Any, *arguments: Any, whole: bool = True) -> None:
    """gradcheck of the operator's floating point outputs, one after the other: the whole Jacobian,
    or its product with random vectors, which takes a tenth of the time.
    """
    floats = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.requires_grad]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        changed = list(arguments)
        for i, value in zip(floats, values, strict=True):
            changed[i] = value
        out = op(*changed)
        return tuple(o for o in (out if isinstance(out, tuple) else (out,)) if o.requires_grad)

    given = [arguments[i] for i in floats]
    assert torch.autograd.gradcheck(run, given, fast_mode=not whole)


REFERENCE = Namespace.named("dsgc")


@pytest.mark.parametrize(
    "name",
    [
        *("activate", "pack", "unpack", "batch_affine", "max_pool2d", "stem_conv2d"),
        *("dense_linear", "residual_add"),
    ],
)
def test_gradcheck(name: str) -> None:
    cases = _operations(REFERENCE)[name]()
    for number, arguments in enumerate(cases):
        operator = getattr(REFERENCE.ops, name)
        plain = name in ("pack", "stem_conv2d", "dense_linear")
        run = operator if plain else _through_pack(operator)
        _gradcheck(run, *arguments, whole=number in (0, len(cases) - 1))


def _through_pack(operator: Any) -> Callable[..., Any]:
    """The operator on values whose tail lanes are held at zero, as they always are."""

    def run(x: Tensor, index: Tensor | None, *rest: Any) -> Any:
        if index is None or index.dtype == torch.uint8:
            return operator(x, index, *rest)
        lanes = index.view(-1, 1) * x.shape[1] + torch.arange(x.shape[1])
        return operator(x * (lanes < 10), index, *rest)

    return run


@pytest.mark.parametrize(("x_block", "y_block"), FORMS)
@pytest.mark.parametrize("act", ACTS)
def test_gradcheck_of_conv2d(x_block: int, y_block: int, act: str) -> None:
    arguments = (*_act(REFERENCE, x_block, act), *_conv_arguments(REFERENCE, y_block))
    _gradcheck(_through_pack(REFERENCE.ops.conv2d), *arguments, whole=act == "affine_relu")


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("block", [1, 8])
def test_gradcheck_of_pool2d(mode: str, block: int) -> None:
    for act in ACTS:
        arguments = (*_act(REFERENCE, block, act), mode, *POOL)
        _gradcheck(_through_pack(REFERENCE.ops.pool2d), *arguments)


def _convolved(namespace: Namespace) -> tuple[Tensor, tuple[Any, ...]]:
    arguments = (*_act(namespace, 8, "relu"), *_conv_arguments(namespace, 8))
    y: Tensor = namespace.ops.conv2d(*arguments)
    return y, arguments


def test_a_second_derivative_is_refused(namespace: Namespace) -> None:
    y, arguments = _convolved(namespace)
    direction = torch.ones_like(y).requires_grad_()
    (grad,) = torch.autograd.grad(y, arguments[7], direction, create_graph=True)
    assert grad.abs().sum() > 0
    with pytest.raises(UnsupportedError, match="reference"):
        grad.sum().backward()


def test_a_second_derivative_is_never_zero(namespace: Namespace) -> None:
    """Also for those who take a missing gradient for one of zeros."""
    y, arguments = _convolved(namespace)
    (grad,) = torch.autograd.grad(y.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(UnsupportedError, match="second"):
        torch.autograd.grad(grad.square().sum(), arguments[0], allow_unused=True)


@pytest.mark.parametrize("which", [0, 7], ids=["input", "weight"])
def test_derivatives_of_forward_mode_are_refused(namespace: Namespace, which: int) -> None:
    _, found = _convolved(namespace)
    arguments = [_plain(one) for one in found]
    with forward_ad.dual_level():
        tangent = torch.ones_like(arguments[which])
        arguments[which] = forward_ad.make_dual(  # type: ignore[no-untyped-call]
            arguments[which], tangent
        )
        with pytest.raises(UnsupportedError, match="forward mode"):
            namespace.ops.conv2d(*arguments)


def test_nothing_dense_is_kept_for_backward(namespace: Namespace) -> None:
    """conv, BatchNorm, ReLU and pooling keep packed values and vectors, and no map."""
    ops = namespace.ops
    source = Source(8, 32, 8, 8, 8, "identity", 0.2, False, 0).build(namespace.dtype)
    arguments = source.arguments(ops)
    weight = _leaf(torch.randn(32, 32, 3, 3, dtype=namespace.dtype))
    selection = mask_to_selection(out_mask(8, 32, (8, 8), 8, 4), False)
    norm = PackedBatchNorm(torch.nn.BatchNorm2d(32).to(namespace.dtype), "active", namespace.name)
    kept: dict[int, tuple[int, ...]] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = tuple(x.shape)
        return x

    size = [32, 8, 8]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        y = ops.conv2d(*arguments, weight, None, *selection, 8, (1, 1), (1, 1), (1, 1))
        y, scale, shift = norm(y, *selection, size, False)
        pooled, index, rowptr, _ = ops.pool2d(
            y, *selection, scale, shift, "affine_relu", size, "max", (2, 2), (2, 2), (0, 0),
            False, True,
        )  # fmt: skip
        z = ops.conv2d(
            pooled, index, rowptr, None, None, "identity", [32, 4, 4], weight, None,
            *mask_to_selection(out_mask(8, 32, (4, 4), 8, 5), False), 8, (1, 1), (1, 1), (1, 1),
        )  # fmt: skip
    maps = [shape for shape in kept.values() if len(shape) == 4 and shape != weight.shape]
    assert not maps
    values = [shape for shape in kept.values() if len(shape) == 2]
    # Input, first output and pooled values, and the argmax: each once, whoever reads them.
    assert sorted(values) == sorted(
        [tuple(arguments[0].shape), tuple(y.shape), tuple(pooled.shape), tuple(pooled.shape)]
    )
    z.sum().backward()


def test_kernels_must_be_complete() -> None:
    incomplete = {name: kernel for name, kernel in KERNELS.items() if name != "pack"}
    with pytest.raises(KeyError, match="no kernel for pack"):
        register("dsgc_incomplete", incomplete)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reference_takes_half_precision(dtype: torch.dtype) -> None:
    half = Namespace("dsgc", dtype, 0.05)
    arguments = (*_act(half, 8, "affine_relu"), *_conv_arguments(half, 8))
    y = half.ops.conv2d(*arguments)
    assert y.dtype == dtype
    y.sum().backward()
    assert arguments[0].grad.dtype == dtype


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_results_are_memory_of_their_own(namespace: Namespace, name: str) -> None:
    """No views, which must not be changed in place, and nothing of the arguments."""
    for arguments in _operations(namespace)[name]():
        found = getattr(namespace.ops, name)(*arguments)
        given = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, Tensor)}
        for result in found if isinstance(found, tuple) else (found,):
            if result.numel():
                assert result.untyped_storage().data_ptr() not in given
            if result.requires_grad:
                assert not result._is_view()
                result.add_(1)


def _functions(namespace: Namespace) -> Any:
    if namespace.name == "dsgc":
        return direct_operators("dsgc", SPECS, KERNELS)
    return cpu_functions()


def _outcome(call: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    """Results, which of them need gradients, and the gradients of all arguments."""
    results = call(*arguments)
    results = [results] if isinstance(results, Tensor) else list(results)
    needed = [one for one in results if one.requires_grad]
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    make = torch.Generator().manual_seed(3)
    weights = [torch.rand(one.shape, generator=make, dtype=one.dtype) for one in needed]
    grads = torch.autograd.grad(needed, leaves, weights, allow_unused=True) if needed else ()
    return [*results, [one.requires_grad for one in results], *grads]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_functions_are_the_operators_to_the_bit(namespace: Namespace, spec: OpSpec) -> None:
    name, fresh = spec.name, _plain if spec.backward is None else _leaf
    operator, function = getattr(namespace.ops, name), getattr(_functions(namespace), name)
    for given in _operations(namespace)[name]():
        arguments = tuple(map(fresh, given))
        expected = _outcome(operator, arguments)
        actual = _outcome(function, arguments)
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                assert torch.equal(a, b)
                assert a.stride() == b.stride()
            else:
                assert a == b


def test_functions_without_gradients_keep_nothing() -> None:
    weight = torch.randn(16, 16, requires_grad=True)
    with torch.no_grad():
        out = cpu_functions().dense_linear(torch.randn(3, 16), weight, None)
    assert not out.requires_grad
    assert out.grad_fn is None


def test_backward_of_functions_calls_operators_for_tensors_of_others() -> None:
    """As compilers of the backward pass, which send tensors without memory through it."""
    weight = torch.randn(16, 16, requires_grad=True)
    out = cpu_functions().dense_linear(torch.randn(3, 16), weight, None)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        grad = mode.from_tensor(torch.ones(3, 16))
        (found,) = torch.autograd.grad(out, weight, grad)
    assert isinstance(found, FakeTensor)
    assert found.shape == (16, 16)
