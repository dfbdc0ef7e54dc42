"""Winograd's F(4x4, 3x3), F(2x2, 3x3), F(2x2, 5x5), F(4, 3), and F(3x3, 4x4) for weights: what "auto" takes of them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import _dispatch

if TYPE_CHECKING:
    import numpy as np

    from ._check import Array, Ints

_VECTOR_BYTES = {"avx512": 64, "avx2": 32}  # of the instruction sets that have more than 16
#: Kernels: the outputs of a tile along each axis on which the kernel has more than one tap; how many input channels a
#: group must have so that enough errors are averaged (docs/accuracy.md); and what "auto" wants to gain at least by the
#: estimate below, which is too low more often than too high: more where errors are larger.
FORMS: dict[Ints, dict[int, tuple[int, float]]] = {
    (3, 3): {4: (32, 1.1), 2: (8, 1)},
    (5, 5): {2: (8, 1.1)},
    (1, 3): {4: (32, 1)},
    (3, 1): {4: (32, 1)},
}
_TASK_PRODUCTS = 112 * 36  # tiles of a task, times the products of one: as in pyx/winograd.pyx


def exists(kernel: Ints, stride: Ints, dilation: Ints) -> bool:
    """Return whether a layer can be computed in this way at all."""
    return kernel in FORMS and stride == dilation == (1, 1)


def gain(kernel: Ints, outputs: int, rows: int, channels: int, height: int, width: int, lanes: int) -> float:
    """Estimate how many times faster than the direct sum one image is, for one group and `lanes` lanes.

    The constants are cycles, fitted to benchmarks/winograd.py on AMD Zen 5 for AVX-512, AVX2 and SSE2. `rows` output
    channels of `height` times `width` pixels. The input's transform counts half as much again, since threads that share
    an image all make it.
    """
    taps = kernel[0] * kernel[1]
    m = [outputs if k > 1 else 1 for k in kernel]
    products = (m[0] + kernel[0] - 1) * (m[1] + kernel[1] - 1)
    tiles = -(-height // m[0]) * -(-width // m[1])
    parts = -(-tiles * products // _TASK_PRODUCTS)
    vectors = parts * -(-tiles // (parts * lanes))
    element, line = 2 + 0.38 * lanes, 1 + width / lanes
    pairs = (
        rows
        * channels
        * (0.45 * products * vectors + element * (products + max(taps, taps * taps / 9)) * parts / lanes)
    )
    inputs = 1.5 * channels * (element * products * vectors + 7 * (height + (kernel[0] - 1) * parts) * line)
    results = rows * (0.25 * lanes * products * vectors + 7 * height * line)
    direct = (
        0.5 * rows * channels * taps * (1 + -(-height * width // lanes)) + (8 * channels + 3 * rows) * height * line
    )
    return direct / (pairs + inputs + results)


@lru_cache(maxsize=1024)
def _outputs(forced: bool, kernel: Ints, rows: int, channels: int, height: int, width: int, lanes: int) -> int:
    gains = {m: gain(kernel, m, rows, channels, height, width, lanes) for m in FORMS[kernel]}
    if not forced:
        gains = {m: g for m, g in gains.items() if channels >= FORMS[kernel][m][0] and g >= FORMS[kernel][m][1]}
    return max(gains, key=gains.__getitem__, default=0)


def lanes(dtype: np.dtype[Any]) -> int:
    """Return the lanes of a vector."""
    return _VECTOR_BYTES.get(_dispatch.isa(), 16) // dtype.itemsize


def outputs(kernel: Ints, rows: int, channels: int, size: Ints, dtype: np.dtype[Any], forced: bool) -> int:
    """Return the outputs of a tile along an axis, 0 where "auto" takes the direct sum; with `forced` it is never that.

    It depends on the shape of one group of one image, the dtype and the instruction set.
    """
    return _outputs(forced, kernel, rows, channels, *size, lanes(dtype))


def convolve(
    x: Array,
    weight: Array,
    rotated: bool,
    outputs: int,
    bias: Array | None,
    out: Array,
    padding: Ints,
    groups: int,
    relu: bool,
) -> list[slice]:
    """Write the cross-correlation of x and weight to `out`; return the images that must be summed directly.

    With `rotated`, x is a grad_out and `out` the gradient of the x of a pass with that weight and padding.

    A tile spreads what is not finite over its outputs, and its sums may overflow where the direct ones do not.
    Either leaves some output of the tile that is not finite, which is what the kernel looks for. Whether an image is
    summed directly depends on itself alone.
    """
    kernels = _dispatch.kernels("winograd", x.dtype)
    top, left = (k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True)) if rotated else padding
    threads, scratch = _dispatch.threads(), _dispatch.scratch
    redo = kernels.forward(x, weight, rotated, outputs, bias, out, top, left, groups, relu, threads, scratch)
    return [slice(n, n + 1) for n in redo]


def weight_gain(rows: int, channels: int, images: int, height: int, width: int, lanes: int) -> float:
    """Estimate how many times faster than the direct sum the gradient of a 3x3 weight is, for one group.

    The constants are cycles for 36 products, fitted as those of `gain`. The transform of grad_out counts half as much
    again, since threads that share a group all make it.
    """
    tiles, vectors = -(-height // 4) * -(-width // 4), -(-rows // lanes)
    blocks = max(1, images * tiles * 36 / _TASK_PRODUCTS, images / 8)
    products = channels * vectors * (0.5 * images * tiles + 8 * blocks)
    inputs = (2.5 + 0.65 * lanes) * channels * images * -(-tiles // lanes) * -(-rows // 128)
    grads = 1.5 * (2.5 + 0.2 * lanes) * vectors * images * tiles * -(-channels // 128)
    direct = channels * vectors * (images * height * width / 8 + 1.5)
    return direct / (products + inputs + grads)


def takes_weight(rows: int, channels: int, images: int, size: Ints, dtype: np.dtype[Any]) -> bool:
    """Return whether "auto" takes it for the gradient of a 3x3 weight; its errors are too large on maps below 7x7."""
    height, width = size
    if min(rows, channels) < 32 or min(size) < 7:
        return False
    return weight_gain(rows, channels, images, height, width, lanes(dtype)) >= 1.2


def weight_gradient(x: Array, grad_out: Array, grad_weight: Array, padding: Ints, groups: int) -> bool:
    """Write the gradient of a 3x3 weight; return whether it is finite: if not, it must be summed directly."""
    kernels = _dispatch.kernels("winograd", x.dtype)
    threads, scratch = _dispatch.threads(), _dispatch.scratch
    return not kernels.grad_weight(x, grad_out, grad_weight, *padding, groups, threads, scratch)
