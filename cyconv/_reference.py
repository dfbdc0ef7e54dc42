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
