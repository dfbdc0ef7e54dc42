"""The readable truth of pooling: plain NumPy loops over windows, for any number of axes. Never optimised.

Arrays have a batch axis: (N, C, *spatial). The functions take the parameters of the public ones, in all their forms,
and compute in the dtype that they are given. A tap is a cell of a window that lies in the array; padding has no taps,
so that it adds neither values nor NaNs.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _check

if TYPE_CHECKING:
    from collections.abc import Iterator


class Windows:
    """Windows along each axis of an array of this spatial size."""

    def __init__(
        self, size: Any, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        self.size, n = size, len(size)
        self.kernel = _check.ints("kernel_size", kernel, n, 1)
        self.stride = self.kernel if stride is None else _check.ints("stride", stride, n, 1)
        self.dilation = _check.ints("dilation", dilation, n, 1)
        self.padding = _check.padding(padding, size, self.kernel, self.stride, self.dilation)
        self.out = _check.output_size(size, self.kernel, self.stride, self.padding, self.dilation, ceil_mode)

    def cells(self, axis: int, o: int) -> list[int]:
        """Positions of the cells of window o along an axis, those in the padding included."""
        start = o * self.stride[axis] - self.padding[axis][0]
        return [start + k * self.dilation[axis] for k in range(self.kernel[axis])]

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], list[tuple[Any, ...]]]]:
        """Yield for each window its index and the indices of its taps, row by row, into arrays (N, C, *spatial)."""
        for o in np.ndindex(*self.out):
            inside = [[i for i in self.cells(a, o[a]) if 0 <= i < m] for a, m in enumerate(self.size)]
            yield (..., *o), [(..., *i) for i in product(*inside)]

    def count(self, o: tuple[Any, ...], include_pad: bool) -> int:
        """Number of cells that an average counts: never those beyond the end padding, which ceil_mode can reach."""
        count = 1
        for axis, m in enumerate(self.size):
            before, after = self.padding[axis] if include_pad else (0, 0)
            count *= sum(-before <= i < m + after for i in self.cells(axis, o[axis + 1]))
        return count


class AdaptiveWindows(Windows):
    """Window o covers floor(o * size / out) up to ceil((o + 1) * size / out)."""

    def __init__(self, size: Any, output_size: Any) -> None:
        self.size = size
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * len(size)
        self.out = tuple(m if o is None else o for m, o in zip(size, sizes, strict=True))
        self.padding = ((0, 0),) * len(size)

    def cells(self, axis: int, o: int) -> list[int]:
        m, out = self.size[axis], self.out[axis]
        return list(range(o * m // out, -(-(o + 1) * m // out)))


def max_pool(x: Any, *window: Any, windows: Windows | None = None, **parameters: Any) -> tuple[Any, Any]:
    """Return the maxima and their flat indices in the plane: NaN wins, else the first of equal values.

    A window without taps gives -inf and the index -1.
    """
    windows = windows or Windows(x.shape[2:], *window, **parameters)
    out = np.full((*x.shape[:2], *windows.out), -np.inf, x.dtype)
    indices = np.full(out.shape, -1, np.int64)
    for o, taps in windows:
        best, index = out[o], indices[o]
        for i in taps:
            wins = (index < 0) | (x[i] > best) | (np.isnan(x[i]) & ~np.isnan(best))
            best[wins], index[wins] = x[i][wins], np.ravel_multi_index(i[1:], windows.size)
    return out, indices


def max_pool_backward(grad_out: Any, x: Any, *window: Any, **parameters: Any) -> Any:
    """Return grad_x: each element of grad_out goes to the cell that its maximum was read from."""
    return max_unpool(grad_out, max_pool(x, *window, **parameters)[1], x.shape[2:])


def max_unpool(x: Any, indices: Any, output_size: Any) -> Any:
    """Return an array of that spatial size; each cell holds the sum of the elements sent to it. -1: nowhere."""
    out = np.zeros((*x.shape[:2], *output_size), x.dtype)
    flat = out.reshape(*x.shape[:2], -1)
    for at in np.ndindex(x.shape):
        if indices[at] >= 0:
            flat[at[0], at[1], indices[at]] += x[at]
    return out


def avg_pool(
    x: Any, *window: Any, count_include_pad: bool = True, divisor_override: int | None = None,
    windows: Windows | None = None, **parameters: Any,
) -> Any:  # fmt: skip
    """Return the means. A window that counts no cells gives NaN (0 / 0)."""
    windows = windows or Windows(x.shape[2:], *window, **parameters)
    out = np.zeros((*x.shape[:2], *windows.out), x.dtype)
    for o, taps in windows:
        for i in taps:
            out[o] += x[i]
        with np.errstate(invalid="ignore"):
            out[o] /= divisor_override or windows.count(o, count_include_pad)
    return out


def avg_pool_backward(
    grad_out: Any, input_shape: Any, *window: Any, count_include_pad: bool = True, divisor_override: int | None = None,
    windows: Windows | None = None, **parameters: Any,
) -> Any:  # fmt: skip
    """Return grad_x: each element of grad_out is spread evenly over the taps of its window."""
    windows = windows or Windows(input_shape[2:], *window, **parameters)
    grad_x = np.zeros(input_shape, grad_out.dtype)
    for o, taps in windows:
        divisor = divisor_override or windows.count(o, count_include_pad)
        for i in taps:
            # in the forward pass: out[o] += x[i] / divisor
            grad_x[i] += grad_out[o] / divisor
    return grad_x


def lp_pool(x: Any, p: float, *window: Any, **parameters: Any) -> Any:
    """Return (sum of |x|^p)^(1/p)."""
    return avg_pool(np.abs(x) ** p, *window, divisor_override=1, **parameters) ** (1 / p)
