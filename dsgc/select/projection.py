"""Projections for the search: random (DSG, arXiv 1810.00859), or those a weight keeps most in."""

import functools
import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.config import LayerSettings
from dsgc.observed import is_observed
from dsgc.ops.layout import ceil_div

__all__ = [
    "all_equal",
    "estimate_unit",
    "fingerprint",
    "generator_for",
    "leading_dimension",
    "leading_projection",
    "mark_of",
    "pixel_dimension",
    "project_weight",
    "reduced_dimension",
    "round_weight",
    "search_dimension",
    "ternary_projection",
]

PIXEL_MULTIPLE = 4
"""Reduced dimensions of a pixel are multiples of this: what an 8-bit dot product adds at once."""

NEURON_MULTIPLE = 64
"""Projected weights are filled up with zeros to a multiple of this many neurons."""


_ITERATIONS = 2
_SAMPLED = 2048  # rows of a weight that leading directions are taken from
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LEAST_LEADING = 16
_MANY_TAPS = 16
_LEADING_SHARE = 8
_MOST_LEADING = 128


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator seeded by the whole key: the same on every machine and device."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def reduced_dimension(neurons: int, epsilon: float) -> int:
    """The published reduced dimension of a window: 4 ln n_K / (eps^2/2 - eps^3/3), at least 1."""
    return max(1, int(4 * math.log(neurons) / (epsilon**2 / 2 - epsilon**3 / 3)))


def pixel_dimension(dimension: int, taps: int, channels: int) -> int:
    """A window's reduced dimension divided over its `taps` pixels of `channels` channels."""
    rounded = ceil_div(ceil_div(dimension, taps), PIXEL_MULTIPLE) * PIXEL_MULTIPLE
    return min(channels, max(PIXEL_MULTIPLE, rounded))


def leading_dimension(dimension: int, channels: int) -> int:
    """How many leading directions stand for `dimension` random ones: an eighth of the channels, but
    at least 16 and at most 128, unless fewer do."""
    share = ceil_div(ceil_div(channels, _LEADING_SHARE), PIXEL_MULTIPLE) * PIXEL_MULTIPLE
    return min(dimension, max(_LEAST_LEADING, min(_MOST_LEADING, share)))


def search_dimension(settings: LayerSettings, neurons: int, channels: int, taps: int) -> int:
    """The reduced dimension of a layer with `channels` times `taps` inputs a neuron.

    Of a window, or of a pixel if pixels are projected.
    """
    wanted = settings.reduced_dimension
    if wanted is None:
        wanted = reduced_dimension(neurons, settings.epsilon)
    if settings.projection == "window":
        return wanted
    of_pixel = pixel_dimension(wanted, taps, channels)
    if settings.selector == "svd" and settings.reduced_dimension is None:
        return leading_dimension(of_pixel, channels)
    return of_pixel


def ternary_projection(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Achlioptas' projection with s = 3: int8 [rows, columns], +1 and -1 with probability 1/6 each.

    The published factor sqrt(3) is left out here; see `estimate_unit`.
    """
    draw = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    return (draw < 1 / 6).to(torch.int8) - (draw >= 5 / 6).to(torch.int8)


def leading_projection(weight: Tensor, columns: int, window: bool) -> Tensor:
    """The `columns` orthonormal directions of a layer's input that its outputs depend on most.

    They span the leading left singular vectors of weight [K, C, R, S], seen as [C, K*R*S] or, for
    whole windows, as [C*R*S, K]: no other projection to so few dimensions keeps more of the weight.
    Found by randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) on a
    fixed sample of the neurons, from a fixed start, so that equal weights have equal projections.
    Neurons that are not finite count as zero.
    """
    wanted = max(1, _SAMPLED if window else _SAMPLED // weight[0, 0].numel())
    if weight.shape[0] > wanted:
        chosen = torch.randperm(weight.shape[0], generator=generator_for("neurons"))[:wanted]
        weight = weight[chosen.to(weight.device)]
    matrix = weight.flatten(1).t() if window else weight.transpose(0, 1).flatten(1)
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    matrix = torch.nan_to_num(matrix.to(dtype), nan=0.0, posinf=0.0, neginf=0.0)
    basis = _start(matrix.shape[0], matrix.shape[1], columns, dtype).to(matrix.device)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(matrix @ (matrix.t() @ basis))[0]
    return basis.contiguous()


def _start(rows: int, samples: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Random orthonormal columns [rows, columns], always the same; only to be read."""
    if is_observed():  # what is made now may be no tensor for later
        return _made_start(rows, samples, columns, dtype)
    return _kept_start(rows, samples, columns, dtype)


def _made_start(rows: int, samples: int, columns: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        generator = generator_for("leading projection", rows, samples, columns)
        start = torch.randn(
            rows, columns, generator=generator, dtype=torch.float64, device=generator.device
        )
        basis: Tensor = torch.linalg.qr(start.to(dtype))[0]
    return basis


_kept_start = functools.lru_cache(maxsize=64)(_made_start)


def estimate_unit(projection: Tensor) -> float:
    """What a product of projected values is worth, for estimates in the units of the outputs.

    A ternary projection of d columns keeps inner products times d / 3, on average.
    """
    return 3.0 / projection.shape[1] if projection.dtype == torch.int8 else 1.0


def project_weight(weight: Tensor, projection: Tensor, window: bool) -> Tensor:
    """weight [K, C, R, S] in the projected space.

    Window form: projection [C*R*S, k] gives [k, K]. Pixel form: projection [C, d] gives
    [R*S, d, Kp], the neurons of each tap filled up with zeros to Kp.
    """
    matrix = projection.to(weight.dtype)
    neurons, channels = weight.shape[:2]
    if window:
        return (weight.reshape(neurons, -1) @ matrix).t().contiguous()
    # Tap by tap, or, where taps are many, neuron by neuron: it reads the weight as it is stored.
    by_tap = weight[0, 0].numel() < _MANY_TAPS
    rows = weight.reshape(neurons, channels, -1)
    taps = (rows.permute(2, 0, 1) @ matrix).mT if by_tap else (matrix.t() @ rows).permute(2, 1, 0)
    fill = ceil_div(neurons, NEURON_MULTIPLE) * NEURON_MULTIPLE - neurons
    return torch.nn.functional.pad(taps, (0, fill)).contiguous()


def round_weight(projected: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [R*S, d, Kp] of the pixel form as int8, and the unit [Kp] of each neuron.

    The largest magnitude of a neuron becomes 127. A neuron that is not finite has a unit of NaN.
    """
    peak = projected.abs().amax((0, 1))
    unit = torch.where(peak.isfinite(), peak, torch.nan) / 127
    levels = torch.where(unit > 0, (projected / unit).round(), torch.zeros_like(projected))
    return levels.to(torch.int8), unit


def fingerprint(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the numbers' bits over all but the first dimension, and over the first.

    Hardly any change leaves them as they are; all of the tensor is read.
    """
    words = tensor.detach().view(_BITS[tensor.element_size()])
    words = words.view(1) if words.dim() == 0 else words
    across = tuple(range(1, words.dim()))
    # Sums of another type would convert the whole tensor first; these may well overflow.
    kept = words.dtype
    return words.sum(across, dtype=kept) if across else words.clone(), words.sum(0, dtype=kept)


def all_equal(found: Sequence[Tensor | None], before: Sequence[Tensor | None]) -> bool:
    """Whether tensors are equal, of one dtype and on one device.

    False of tensors that only have a shape: it cannot be told.
    """
    if len(found) != len(before):
        return False
    for one, other in zip(found, before, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
        elif (
            one.is_meta
            or {type(one), type(other)} != {Tensor}
            or (one.device, one.dtype) != (other.device, other.dtype)
            or not torch.equal(one, other)
        ):
            return False
    return True


def mark_of(tensor: Tensor) -> tuple[int, int]:
    """Changes when `tensor` is written in place (not through `.data`) or gets other memory."""
    version = 0 if tensor.is_inference() else tensor._version
    # Tensors of other classes, such as those that only have a shape, may have no memory.
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return version, tensor.data_ptr() if plain else 0
