"""Winograd's F(4x4, 3x3): where it exists, where "auto" takes it, and what is summed directly after all."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import _dispatch

if TYPE_CHECKING:
    import numpy as np

    from ._check import Array, Ints

_VECTOR_BYTES = {"avx512": 64, "avx2": 32}  # of the instruction sets that have more than 16
#: With fewer input channels in a group, too few errors are averaged (docs/accuracy.md).
MIN_CHANNELS = 32
#: What "auto" wants to gain at least, by the estimate below.
MIN_GAIN = 1.15
_TASK_TILES = 112  # as in pyx/winograd.pyx


def exists(kernel: Ints, stride: Ints, dilation: Ints) -> bool:
    """Return whether a layer can be computed in this way at all."""
    return kernel == (3, 3) and stride == dilation == (1, 1)


def gain(rows: int, channels: int, height: int, width: int, lanes: int) -> float:
    """Estimate how many times faster than the direct sum one image is, for one group and `lanes` lanes.

    The constants are cycles on AMD Zen 5, fitted to benchmarks/winograd.py; for other instruction sets the
    estimate is too low by up to a third. `rows` output channels of `height` times `width` pixels. The input's transform
    counts twice, since two threads that share an image both make it.
    """
    tiles_y, tiles_x = -(-height // 4), -(-width // 4)
    parts = -(-tiles_y // max(1, _TASK_TILES // tiles_x))
    vectors = parts * -(-tiles_y * tiles_x // (parts * lanes))
    products = rows * channels * (15 * vectors + 208 / lanes * parts)
    tiles = 2 * channels * (200 * vectors + 23 * (height + 2 * parts)) + rows * (145 * vectors + 7 * height)
    return 5.1 * rows * channels * height * width / lanes / (products + tiles)


@lru_cache(maxsize=1024)
def _pays(rows: int, channels: int, height: int, width: int, lanes: int) -> bool:
    return channels >= MIN_CHANNELS and gain(rows, channels, height, width, lanes) >= MIN_GAIN


def lanes(dtype: np.dtype[Any]) -> int:
    """Return the lanes of a vector."""
    return _VECTOR_BYTES.get(_dispatch.isa(), 16) // dtype.itemsize


def pays(rows: int, channels: int, size: Ints, dtype: np.dtype[Any]) -> bool:
    """Return whether "auto" takes it: by the shape of one group of one image, the dtype and the instruction set."""
    return _pays(rows, channels, *size, lanes(dtype))


def convolve(
    x: Array, weight: Array, rotated: bool, bias: Array | None, out: Array, padding: Ints, groups: int, relu: bool
) -> list[slice]:
    """Write the cross-correlation of x and weight to `out`; return the images that must be summed directly.

    With `rotated`, x is a grad_out and `out` the gradient of the x of a pass with that weight and padding.

    A tile spreads what is not finite over its 4x4 outputs, and its sums may overflow where the direct ones do not.
    Either leaves some output of the tile that is not finite, which is what the kernel looks for. Whether an image is
    summed directly depends on itself alone.
    """
    kernels = _dispatch.kernels("winograd", x.dtype)
    top, left = (2 - p for p in padding) if rotated else padding
    threads, scratch = _dispatch.threads(), _dispatch.scratch
    redo = kernels.forward(x, weight, rotated, bias, out, top, left, groups, relu, threads, scratch)
    return [slice(n, n + 1) for n in redo]
