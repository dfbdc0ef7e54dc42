"""The readable truth: every operation as plain NumPy loops over its taps. Never optimised; always with a batch axis.

The functions take the parameters of the public ones, in all their forms, and compute in the dtype that they are given.
A tap is an output pixel (oy, ox) with a kernel cell (ky, kx) whose input pixel (y, x) lies in the image; padding has no
taps, so that it adds neither values nor NaNs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _check

if TYPE_CHECKING:
    from collections.abc import Iterator


class Windows:
    """The taps of a 2-D operation: size of the input and kernel, and the parameters, give the size of the output."""

    def __init__(
        self, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool = False
    ) -> None:
        self.size, self.kernel = size, _check.ints("kernel_size", kernel, 2, 1)
        self.stride = _check.ints("stride", stride, 2, 1)
        self.dilation = _check.ints("dilation", dilation, 2, 1)
        self.padding = _check.padding(padding, size, self.kernel, self.stride, self.dilation)
        self.out = _check.output_size(size, self.kernel, self.stride, self.padding, self.dilation, ceil_mode)

    def pixels(self) -> Iterator[tuple[int, int]]:
        """Yield (oy, ox)."""
        yield from np.ndindex(*self.out)

    def taps(self, oy: int, ox: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (ky, kx, y, x) of one output pixel, row by row."""
        for ky, kx in np.ndindex(*self.kernel):
            y = oy * self.stride[0] - self.padding[0][0] + ky * self.dilation[0]
            x = ox * self.stride[1] - self.padding[1][0] + kx * self.dilation[1]
            if 0 <= y < self.size[0] and 0 <= x < self.size[1]:
                yield ky, kx, y, x


def _groups(C: int, F: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """Yield the input and the output channels of each group."""
    for g in range(groups):
        yield slice(g * C // groups, (g + 1) * C // groups), slice(g * F // groups, (g + 1) * F // groups)


def conv2d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """x (N, C, H, W), weight (F, C/groups, KH, KW), bias (F,) -> out (N, F, OH, OW)."""
    windows = Windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    out = np.zeros((len(x), len(weight), *windows.out), x.dtype)
    for c, f in _groups(x.shape[1], len(weight), groups):
        for oy, ox in windows.pixels():
            for ky, kx, iy, ix in windows.taps(oy, ox):
                out[:, f, oy, ox] += x[:, c, iy, ix] @ weight[f, :, ky, kx].T
    return out if bias is None else out + bias[:, None, None]


def conv2d_backward(
    grad_out: Any, x: Any, weight: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Any, Any, Any]:
    """Return grad_x, grad_weight, grad_bias."""
    windows = Windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
    for c, f in _groups(x.shape[1], len(weight), groups):
        for oy, ox in windows.pixels():
            for ky, kx, iy, ix in windows.taps(oy, ox):
                # in the forward pass: out[:, f, oy, ox] += x[:, c, iy, ix] @ weight[f, :, ky, kx].T
                grad_x[:, c, iy, ix] += grad_out[:, f, oy, ox] @ weight[f, :, ky, kx]
                grad_weight[f, :, ky, kx] += grad_out[:, f, oy, ox].T @ x[:, c, iy, ix]
    return grad_x, grad_weight, grad_out.sum(axis=(0, 2, 3))


def max_pool2d(
    x: Any, kernel_size: Any, *, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Any, Any]:
    """Return the maxima (N, C, OH, OW) and their flat indices y * W + x: NaN wins, else the first of equal values.

    A window without taps gives -inf and the index -1.
    """
    windows = Windows(x.shape[2:], kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)
    out = np.full((*x.shape[:2], *windows.out), -np.inf, x.dtype)
    indices = np.full(out.shape, -1, np.int64)
    for oy, ox in windows.pixels():
        best, index = out[:, :, oy, ox], indices[:, :, oy, ox]
        for _, _, iy, ix in windows.taps(oy, ox):
            value = x[:, :, iy, ix]
            wins = (index < 0) | (value > best) | (np.isnan(value) & ~np.isnan(best))
            best[wins], index[wins] = value[wins], iy * x.shape[3] + ix
    return out, indices


def max_pool2d_backward(grad_out: Any, x: Any, kernel_size: Any, **parameters: Any) -> Any:
    """Return grad_x: each grad_out[n, c, oy, ox] goes to the pixel that its maximum was read from."""
    indices = max_pool2d(x, kernel_size, **parameters)[1]
    grad_x = np.zeros(x.shape, x.dtype)
    for n, c, oy, ox in np.ndindex(*grad_out.shape):
        if indices[n, c, oy, ox] >= 0:
            grad_x[n, c].reshape(-1)[indices[n, c, oy, ox]] += grad_out[n, c, oy, ox]
    return grad_x


def _divisor(windows: Windows, oy: int, ox: int, count_include_pad: bool, divisor_override: int | None) -> int:
    """Number of cells that an average counts; those beyond the end padding, which ceil_mode can reach, never count."""
    if divisor_override is not None:
        return divisor_override
    count = 1
    for o, m, k, s, (before, after) in zip(
        (oy, ox), windows.size, windows.kernel, windows.stride, windows.padding, strict=True
    ):
        first, last = (-before, m + after) if count_include_pad else (0, m)
        start = o * s - before
        count *= max(min(start + k, last) - max(start, first), 0)
    return count


def avg_pool2d(
    x: Any, kernel_size: Any, *, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """Return the means (N, C, OH, OW). A window that counts no cells gives NaN (0 / 0)."""
    windows = Windows(x.shape[2:], kernel_size, kernel_size if stride is None else stride, padding, 1, ceil_mode)
    out = np.zeros((*x.shape[:2], *windows.out), x.dtype)
    for oy, ox in windows.pixels():
        for _, _, iy, ix in windows.taps(oy, ox):
            out[:, :, oy, ox] += x[:, :, iy, ix]
        with np.errstate(invalid="ignore"):
            out[:, :, oy, ox] /= _divisor(windows, oy, ox, count_include_pad, divisor_override)
    return out


def avg_pool2d_backward(
    grad_out: Any, input_shape: Any, kernel_size: Any, *, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """Return grad_x: each grad_out[n, c, oy, ox] is spread evenly over the taps of its window."""
    windows = Windows(input_shape[2:], kernel_size, kernel_size if stride is None else stride, padding, 1, ceil_mode)
    grad_x = np.zeros(input_shape, grad_out.dtype)
    for oy, ox in windows.pixels():
        divisor = _divisor(windows, oy, ox, count_include_pad, divisor_override)
        for _, _, iy, ix in windows.taps(oy, ox):
            grad_x[:, :, iy, ix] += grad_out[:, :, oy, ox] / divisor
    return grad_x
