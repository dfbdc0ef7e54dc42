"""Pooling: maxima and averages over windows, and their gradients. Arguments are checked here and results allocated."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from . import _check, _dispatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from ._check import Array, IntLike, Ints, PaddingLike

    Indices = npt.NDArray[np.int64]

_NO_AXIS = (1, 1, 1, 1, 0, 0, 1)  # what the kernels see of the axes that 1-D and 2-D pooling lack


@lru_cache(maxsize=256, typed=True)
def _plan(size: Ints, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> tuple[Ints, bytes]:
    """Return the output's spatial shape and the geometry for the kernels: size, out, window, ... of d, h, w."""
    n = len(size)
    kernel = _check.ints("kernel_size", kernel, n, 1)
    stride = kernel if stride is None else _check.ints("stride", stride, n, 1)
    dilation = _check.ints("dilation", dilation, n, 1)
    pads = _check.padding(padding, size, kernel, stride, dilation)
    out = _check.output_size(size, kernel, stride, pads, dilation, ceil_mode)
    axes = [*_NO_AXIS] * (3 - n)
    for m, o, k, s, (before, after), d in zip(size, out, kernel, stride, pads, dilation, strict=True):
        axes += [m, o, k, s if o > 1 else 1, before, after, d]
    return out, struct.pack("21n", *axes)


def _windows(
    n: int, shape: Ints, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Ints, bytes]:
    """Return the output's shape and the geometry. What the cache cannot tell apart, 2 and 2.0 in tuples, is checked."""
    if type(kernel) is not int:
        kernel = _check.ints("kernel_size", kernel, n, 1)
    if stride is not None and type(stride) is not int:
        stride = _check.ints("stride", stride, n, 1)
    if type(dilation) is not int:
        dilation = _check.ints("dilation", dilation, n, 1)
    if type(padding) is not int and type(padding) is not str:
        padding = _check.padding(padding, shape[-n:], (1,) * n, (1,) * n, (1,) * n)
    size, geometry = _plan(shape[-n:], kernel, stride, padding, dilation, bool(ceil_mode))
    return shape[:-n] + size, geometry


def _planes(n: int, shape: Ints) -> int:
    return shape[0] if len(shape) == n + 1 else shape[0] * shape[1]


def _flat(a: Any) -> Any:
    """Return a one-dimensional view, or copy where the kernels need one."""
    return _check.contiguous(a if type(a) is np.ndarray else a.view(np.ndarray)).ravel()


def _max(n: int, x: Array, windows: tuple[Any, ...], return_indices: bool, out: Array | None) -> Any:
    _check.array("x", x)
    _check.spatial("x", x.shape, n)
    shape, geometry = _windows(n, x.shape, *windows)
    dtype = x.dtype
    result = _check.output("out", out, shape, dtype, x)
    indices = np.empty(shape, np.int64) if return_indices else None
    if result.size:
        buffer = result if out is None or result.flags.c_contiguous else np.empty(shape, dtype)
        _dispatch.kernels("pool", dtype).max_forward(
            _flat(x), _flat(buffer), None if indices is None else indices.ravel(), geometry, _planes(n, shape),
            _dispatch.threads(), _dispatch.scratch,
        )  # fmt: skip
        if buffer is not result:
            result[...] = buffer
    return result if indices is None else (result, indices)


def _max_backward(n: int, grad_out: Array, x: Array, windows: tuple[Any, ...], indices: Indices | None) -> Array:
    _check.array("x", x)
    _check.spatial("x", x.shape, n)
    _check.array("grad_out", grad_out)
    _check.same_dtype(grad_out=grad_out, x=x)
    shape, geometry = _windows(n, x.shape, *windows)
    _check.same_shape("grad_out", grad_out, shape)
    if indices is not None:
        _check.indices("indices", indices, shape)
    grad_x: Array = np.empty(x.shape, x.dtype)
    if grad_x.size and not _dispatch.kernels("pool", x.dtype).max_backward(
        _flat(grad_out), None if indices is not None else _flat(x), None if indices is None else _flat(indices),
        grad_x.ravel(), geometry, _planes(n, shape), _dispatch.threads(), _dispatch.scratch,
    ):  # fmt: skip
        _check.refuse_indices("indices", indices, x.shape[-n:])
    return grad_x


def _avg(
    n: int, x: Array, windows: tuple[Any, ...], count_include_pad: bool, divisor: int | None, out: Array | None
) -> Any:
    _check.array("x", x)
    _check.spatial("x", x.shape, n)
    shape, geometry = _windows(n, x.shape, *windows)
    number = 0 if divisor is None else _check.integer("divisor_override", divisor, 1)
    dtype = x.dtype
    result = _check.output("out", out, shape, dtype, x)
    if result.size:
        buffer = result if out is None or result.flags.c_contiguous else np.empty(shape, dtype)
        _dispatch.kernels("pool", dtype).average_forward(
            _flat(x), _flat(buffer), geometry, _planes(n, shape), bool(count_include_pad), number,
            _dispatch.threads(), _dispatch.scratch,
        )  # fmt: skip
        if buffer is not result:
            result[...] = buffer
    return result


def _avg_backward(
    n: int, grad_out: Array, shape: Any, windows: tuple[Any, ...], count_include_pad: bool, divisor: int | None
) -> Array:
    _check.array("grad_out", grad_out)
    shape = _check.shape("input_shape", shape, n)
    out_shape, geometry = _windows(n, shape, *windows)
    number = 0 if divisor is None else _check.integer("divisor_override", divisor, 1)
    _check.same_shape("grad_out", grad_out, out_shape)
    grad_x: Array = np.empty(shape, grad_out.dtype)
    if grad_x.size:
        _dispatch.kernels("pool", grad_out.dtype).average_backward(
            _flat(grad_out), grad_x.ravel(), geometry, _planes(n, shape), bool(count_include_pad), number,
            _dispatch.threads(), _dispatch.scratch,
        )  # fmt: skip
    return grad_x


@overload
def max_pool2d(
    x: Array, kernel_size: IntLike, *, stride: IntLike | None = ..., padding: PaddingLike = ...,
    dilation: IntLike = ..., ceil_mode: bool = ..., return_indices: Literal[False] = ..., out: Array | None = ...,
) -> Array: ...  # fmt: skip
@overload
def max_pool2d(
    x: Array, kernel_size: IntLike, *, stride: IntLike | None = ..., padding: PaddingLike = ...,
    dilation: IntLike = ..., ceil_mode: bool = ..., return_indices: Literal[True], out: Array | None = ...,
) -> tuple[Array, Indices]: ...  # fmt: skip
def max_pool2d(
    x: Array,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    out: Array | None = None,
) -> Any:
    """Maximum over windows of each channel.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, H, W) or (C, H, W)
    kernel_size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Step from one window to the next, by default the window's size.
    padding : int, one per axis, ((top, bottom), (left, right)), "valid", "same" or "same_lower"
        Cells added around the image; they are never the maximum. Padding may reach or exceed the window. "same" gives
        ``ceil(size / stride)`` outputs, with an odd cell at the end ("same_lower": at the start).
    dilation : int or (int, int)
        Step between the cells of a window.
    ceil_mode : bool
        Round the output's size up instead of down; a last window that would start in the end padding is dropped.
    return_indices : bool
        Also return where each maximum lies.
    out : ndarray, shape of the result, optional
        Where to write the maxima; must not overlap `x`.

    Returns
    -------
    ndarray, shape (N, C, OH, OW) or (C, OH, OW)
        `out`, or a new array; ``OH = (H + top + bottom - dilation * (kernel_size - 1) - 1) // stride + 1``.
        NaN wins. A window that lies wholly in the padding gives -inf.
    indices : ndarray of int64, same shape, if `return_indices`
        Row-major positions ``y * W + x`` in the unpadded image, of equal values the first (of several NaNs the first,
        where torch has the last); -1 for a window that lies wholly in the padding.

    Raises
    ------
    TypeError
        For an array that is not float32 or float64, parameters that are not integers.
    ValueError
        For parameters out of range or an `out` that cannot take the result.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    >>> cyconv.max_pool2d(x, 3, stride=2, padding=1)
    array([[[ 5.,  7.],
            [13., 15.]]], dtype=float32)
    >>> cyconv.max_pool2d(x, 2, return_indices=True)[1]
    array([[[ 5,  7],
            [13, 15]]])
    """
    return _max(2, x, (kernel_size, stride, padding, dilation, ceil_mode), return_indices, out)


def max_pool2d_backward(
    grad_out: Array,
    x: Array,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    indices: Indices | None = None,
) -> Array:
    """Gradient of `max_pool2d`: each element of `grad_out` goes to the cell that its maximum was read from.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``max_pool2d(x, kernel_size, ...)``
    x, kernel_size, stride, padding, dilation, ceil_mode
        As given to `max_pool2d`.
    indices : ndarray of int64, optional
        As returned by `max_pool2d`. The maxima are then not searched again and only the shape of `x` matters.

    Returns
    -------
    ndarray, shape of `x`

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`, and for a `grad_out` or `indices` of another shape, or an index outside the image.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.array([[[1.0, 3.0], [3.0, 2.0]]])
    >>> cyconv.max_pool2d_backward(np.ones((1, 1, 1)), x, 2)
    array([[[0., 1.],
            [0., 0.]]])
    """
    return _max_backward(2, grad_out, x, (kernel_size, stride, padding, dilation, ceil_mode), indices)


def avg_pool2d(
    x: Array,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    out: Array | None = None,
) -> Array:
    """Average over windows of each channel.

    Parameters
    ----------
    x, kernel_size, stride, padding, dilation, ceil_mode, out
        As in `max_pool2d`.
    count_include_pad : bool
        Whether the divisor counts the cells of the padding. Those beyond the end padding, which `ceil_mode` can reach,
        are never counted.
    divisor_override : int, optional
        Divide by this instead.

    Returns
    -------
    ndarray, shape (N, C, OH, OW) or (C, OH, OW)
        `out`, or a new array. A window that counts no cells gives NaN (0 / 0).

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.avg_pool2d(np.arange(9.0).reshape(1, 3, 3), 2, stride=1)
    array([[[2., 3.],
            [5., 6.]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    result: Array = _avg(2, x, windows, count_include_pad, divisor_override, out)
    return result


def avg_pool2d_backward(
    grad_out: Array,
    input_shape: Sequence[int],
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Gradient of `avg_pool2d`: each element of `grad_out` is spread evenly over its window.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``avg_pool2d(x, kernel_size, ...)``
    input_shape : sequence of int
        The shape of `x`.
    kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
        As given to `avg_pool2d`.

    Returns
    -------
    ndarray, shape `input_shape`

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`, and for a `grad_out` of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.avg_pool2d_backward(np.ones((1, 1, 1)), (1, 2, 2), 2)
    array([[[0.25, 0.25],
            [0.25, 0.25]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return _avg_backward(2, grad_out, input_shape, windows, count_include_pad, divisor_override)
