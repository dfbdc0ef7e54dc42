"""Sums over windows: averages, adaptive and global ones, p-norms, and their gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _check, _pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._check import Array, IntLike, PaddingLike
    from ._pool import Plan


def _avg_pool(
    x: Array, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0, dilation: IntLike = 1,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    out: Array | None = None, _n: int = 2,
) -> Array:  # fmt: skip
    """Average over windows of each channel.
    {Parameters}
    x, kernel_size, stride, padding, dilation, ceil_mode, out
        As in `max_pool{n}d`.
    count_include_pad : bool
        Whether the divisor counts the cells of the padding. Those beyond the end padding, which `ceil_mode` can reach,
        are never counted.
    divisor_override : int, optional
        Divide by this instead.
    {Returns: out}. A window that counts no cells gives NaN (0 / 0).
    {Raises: as} `max_pool{n}d`.
    {Examples}
    >>> cyconv.avg_pool{n}d(np.arange(4.0).reshape(1, {1,}4), ({1,}2), stride=1).ravel()
    array([0.5, 1.5, 2.5])
    """
    average = count_include_pad, divisor_override
    plan = _pool.plan(_n, x, None, None, kernel_size, stride, padding, dilation, ceil_mode, *average)
    return _pool.forward(_pool.AVERAGE, x, plan, out)


def _avg_pool_backward(
    grad_out: Array, input_shape: Sequence[int], kernel_size: IntLike, *, stride: IntLike | None = None,
    padding: PaddingLike = 0, dilation: IntLike = 1, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None, _n: int = 2,
) -> Array:  # fmt: skip
    """Gradient of `avg_pool{n}d`: each element of `grad_out` is spread evenly over its window.
    {Parameters: grad_out of} ``avg_pool{n}d(x, kernel_size, ...)``
    {input_shape}
    kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
        As given to `avg_pool{n}d`.
    {Returns: shape} `input_shape`
    {Raises: as} `avg_pool{n}d`, and for a `grad_out` of another shape.
    {Examples}
    >>> cyconv.avg_pool{n}d_backward(np.ones((1, {1,}1)), (1, {1,}4), ({1,}4)).ravel()
    array([0.25, 0.25, 0.25, 0.25])
    """
    _check.array("grad_out", grad_out)
    shape = _check.shape("input_shape", input_shape, _n)
    average = count_include_pad, divisor_override
    plan = _pool.plan(_n, None, grad_out, shape, kernel_size, stride, padding, dilation, ceil_mode, *average)
    return _pool.backward(_pool.AVERAGE_BACKWARD, grad_out, None, shape, plan)


def _adaptive_avg_pool(
    x: Array, output_size: int | Sequence[int | None] | None, *, out: Array | None = None, _n: int = 2
) -> Array:
    """Average of each channel over as many windows as asked for.
    {Parameters}
    x, output_size, out
        As in `adaptive_max_pool{n}d`, with the same windows.
    {Returns: out}.
    {Raises: as} `max_pool{n}d`.
    {Examples}
    >>> cyconv.adaptive_avg_pool{n}d(np.arange(5.0).reshape(1, {1,}5), ({1,}2)).ravel()
    array([1., 3.])
    """
    return _pool.forward(_pool.AVERAGE, x, _pool.adaptive(_n, x, None, None, output_size), out)


def _adaptive_avg_pool_backward(grad_out: Array, input_shape: Sequence[int], *, _n: int = 2) -> Array:
    """Gradient of `adaptive_avg_pool{n}d`; the shape of `grad_out` tells the size of the output.
    {Parameters: grad_out of} ``adaptive_avg_pool{n}d(x, ...)``
    {input_shape}
    {Returns: shape} `input_shape`
    {Raises: as} `avg_pool{n}d_backward`.
    {Examples}
    >>> cyconv.adaptive_avg_pool{n}d_backward(np.ones((1, {1,}2)), (1, {1,}4)).ravel()
    array([0.5, 0.5, 0.5, 0.5])
    """
    _check.array("grad_out", grad_out)
    _check.spatial("grad_out", grad_out.shape, _n)
    shape = _check.shape("input_shape", input_shape, _n)
    plan = _pool.adaptive(_n, None, grad_out, shape, grad_out.shape[-_n:])
    return _pool.backward(_pool.AVERAGE_BACKWARD, grad_out, None, shape, plan)


@_pool.public
def global_avg_pool(x: Array, *, axes: int | None = None, out: Array | None = None) -> Array:
    """Average of each channel over its whole plane.
    {Parameters}
    x : ndarray of float32 or float64, shape (N, C, W), (N, C, H, W) or (N, C, D, H, W)
    axes : int, optional
        How many axes to average over, 1 to 3, by default all after N and C. Needed where there is no batch axis.
    out : ndarray, shape of the result, optional
        Where to write the averages; must not overlap `x`.
    {Returns: shape} (N, C, 1, ...)
        `out`, or a new array. The axes are kept, of length 1.
    {Raises: as} `avg_pool2d`.
    {Examples}
    >>> cyconv.global_avg_pool(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[[[1.5]],
    <BLANKLINE>
            [[5.5]]]])
    """
    n = _pool.global_axes(axes, _check.array("x", x).shape)
    return _pool.forward(_pool.AVERAGE, x, _pool.adaptive(n, x, None, None, 1), out)


@_pool.public
def global_avg_pool_backward(grad_out: Array, input_shape: Sequence[int], *, axes: int | None = None) -> Array:
    """Gradient of `global_avg_pool`: each element of `grad_out` is spread evenly over its plane.
    {Parameters: grad_out of} ``global_avg_pool(x)``
    {input_shape}
    axes : int, optional
        As given to `global_avg_pool`.
    {Returns: shape} `input_shape`
    {Raises: as} `global_avg_pool`, and for a `grad_out` of another shape.
    {Examples}
    >>> cyconv.global_avg_pool_backward(np.ones((1, 1, 1, 1)), (1, 1, 2, 2)).ravel()
    array([0.25, 0.25, 0.25, 0.25])
    """
    n = _pool.global_axes(axes, _check.array("grad_out", grad_out).shape)
    shape = _check.shape("input_shape", input_shape, n)
    plan = _pool.adaptive(n, None, grad_out, shape, 1)
    return _pool.backward(_pool.AVERAGE_BACKWARD, grad_out, None, shape, plan)


def _order(p: Any) -> float:
    """Check the order of a p-norm."""
    if isinstance(p, (bool, np.bool_)) or not isinstance(p, (int, float, np.integer, np.floating)):
        raise TypeError(f"p must be a number, got {p!r}")
    if not 1 <= p <= 100:
        raise ValueError(f"p must be in 1..100, got {p!r}")
    return float(p)


def _norms(x: Any, p: float, plan: Plan) -> Iterator[tuple[int, Any, Any, Any]]:
    """Yield an exponent e, where it applies, a = |x| / 2^e and its p-norms: there powers and their sums stay in range.

    Usually e = 0 is good for all. Elsewhere the windows are sorted by the exponent of their maximum; what is so much
    smaller than the maximum that its power vanishes does not count in the sum either.
    """
    a = np.abs(np.asarray(x))
    info = np.finfo(a.dtype)
    step = int((-info.minexp - info.nmant) / p)  # 2^-step and half of it have powers that are exact
    high = int((info.maxexp - 1 - math.log2(math.prod(plan.size))) / p)
    smallest, largest = np.ldexp(a.dtype.type(1), [-step, high])
    classes: Any = 0
    if not np.all((a == 0) | (a >= smallest) & (a <= largest)):
        maxima = _pool.forward(_pool.MAX, a, plan, None)
        classes = np.ceil(np.frexp(maxima)[1] / step).astype(int)
        classes[~(np.isfinite(maxima) & (maxima > 0))] = 0
    for c in np.unique(classes):
        e = int(c) * step
        scaled = np.ldexp(a, -e) if e else a
        powers = scaled if p == 1 else scaled * scaled if p == 2 else scaled**p
        sums = _pool.forward(_pool.AVERAGE, powers, plan, None)
        yield e, classes == c, scaled, sums if p == 1 else np.sqrt(sums) if p == 2 else sums ** (1 / p)


def _lp_pool(
    x: Array, p: float, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0,
    dilation: IntLike = 1, ceil_mode: bool = False, out: Array | None = None, _n: int = 2,
) -> Array:  # fmt: skip
    """p-norm over windows of each channel: ``(sum of |x|^p)^(1/p)``.
    {Parameters: x}
    p : float
        1 to 100. 1 gives the sum of the magnitudes, 2 the Euclidean norm; large values come close to the maximum.
    kernel_size, stride, padding, dilation, ceil_mode, out
        As in `max_pool{n}d`.
    {Returns: out}. Powers that leave the dtype's range do no harm to a result that is in it.
    {Raises: as} `max_pool{n}d`, and if `p` is not a number of 1 to 100.

    Notes
    -----
    This is ONNX's LpPool. torch's lp_pool adds up x^p with its sign, so that for odd p values cancel; with `ceil_mode`
    it scales the sum of a window that ends outside the image to the full number of cells.
    {Examples}
    >>> cyconv.lp_pool{n}d(np.array([3.0, -4.0]).reshape(1, {1,}2), 2, ({1,}2)).ravel()
    array([5.])
    """
    p = _order(p)
    plan = _pool.plan(_n, x, None, None, kernel_size, stride, padding, dilation, ceil_mode, True, 1)
    result: Array = _check.output("out", out, plan.shape, x.dtype, x)
    if result.size:
        with np.errstate(all="ignore"):
            for e, where, _, norms in _norms(x, p, plan):
                np.copyto(result, np.ldexp(norms, e) if e else norms, where=where)
    return result


def _lp_pool_backward(
    grad_out: Array, x: Array, p: float, kernel_size: IntLike, *, stride: IntLike | None = None,
    padding: PaddingLike = 0, dilation: IntLike = 1, ceil_mode: bool = False, _n: int = 2,
) -> Array:  # fmt: skip
    """Gradient of `lp_pool{n}d`: a cell gets ``grad_out * sign(x) * (|x| / out)^(p - 1)`` of each window that it is in.
    {Parameters: grad_out of} ``lp_pool{n}d(x, p, kernel_size, ...)``
    x, p, kernel_size, stride, padding, dilation, ceil_mode
        As given to `lp_pool{n}d`.
    {Returns: shape} of `x`
        Zero where `x` is zero.
    {Raises: as} `lp_pool{n}d`, and for a `grad_out` of another shape or dtype.
    {Examples}
    >>> x = np.array([3.0, -4.0]).reshape(1, {1,}2)
    >>> cyconv.lp_pool{n}d_backward(np.ones((1, {1,}1)), x, 2, ({1,}2)).ravel()
    array([ 0.6, -0.8])
    """
    p = _order(p)
    _check.array("grad_out", grad_out)
    windows = kernel_size, stride, padding, dilation, ceil_mode, True, 1
    plan = _pool.plan(_n, x, None, None, *windows)
    back = _pool.plan(_n, x, grad_out, None, *windows)
    result: Array = np.zeros(x.shape, x.dtype)
    if result.size:
        with np.errstate(all="ignore"):
            for _, where, scaled, norms in _norms(x, p, plan):
                shares = np.where(where & (norms != 0), grad_out * norms ** (1 - p), 0)
                part = _pool.backward(_pool.AVERAGE_BACKWARD, shares, None, x.shape, back) * scaled ** (p - 1)
                result += np.where(part == part, part, 0) if np.ndim(where) else part
            result *= np.sign(x)
    return result


avg_pool1d, avg_pool2d, avg_pool3d = _pool.each(_avg_pool)
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = _pool.each(_avg_pool_backward)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = _pool.each(_adaptive_avg_pool)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = _pool.each(
    _adaptive_avg_pool_backward
)
lp_pool1d, lp_pool2d, lp_pool3d = _pool.each(_lp_pool)
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = _pool.each(_lp_pool_backward)
