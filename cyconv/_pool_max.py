"""Maxima over windows, where they lie, and the way back: max, adaptive and global pooling, unpooling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _check, _dispatch, _pool
from ._windows import Axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._check import Array, IntLike, PaddingLike
    from ._pool import Indices, Plan


def _with_indices(x: Array, plan: Plan, out: Array | None) -> tuple[Array, Indices]:
    """Return the maxima and where they lie."""
    indices = np.empty(plan.shape, np.int64)
    return _pool.forward(_pool.INDICES, x, plan, out, indices.ravel()), indices


def _max_pool(
    x: Array, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0, dilation: IntLike = 1,
    ceil_mode: bool = False, return_indices: bool = False, out: Array | None = None, _n: int = 2,
) -> Any:  # fmt: skip
    """Maximum over windows of each channel.
    {Parameters: x}
    kernel_size : {int}
        Size of the window.
    stride : {int}, optional
        Step from one window to the next, by default the window's size.
    padding : int, one per axis, a pair (before, after) per axis, "valid", "same" or "same_lower"
        Cells added around the image; they are never the maximum. Padding may reach or exceed the window. "same" gives
        ``ceil(size / stride)`` outputs, with an odd cell at the end ("same_lower": at the start).
    dilation : {int}
        Step between the cells of a window.
    ceil_mode : bool
        Round the output's size up instead of down; a last window that would start in the end padding is dropped.
    return_indices : bool
        Also return where each maximum lies.
    out : ndarray, shape of the result, optional
        Where to write the maxima; must not overlap `x`.
    {Returns: out}; ``OW = (W + before + after - dilation * (kernel_size - 1) - 1) // stride + 1``.
        NaN wins. A window that lies wholly in the padding gives -inf.
    indices : ndarray of int64, same shape, if `return_indices`
        Row-major positions ``{W}`` in the unpadded image, of equal values the first (of several NaNs the first, where
        torch has the last); -1 for a window that lies wholly in the padding.

    Raises
    ------
    TypeError
        For an array that is not float32 or float64, parameters that are not integers.
    ValueError
        For parameters out of range or an `out` that cannot take the result.
    {Examples}
    >>> x = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 4.0]).reshape(1, {1,}6)
    >>> cyconv.max_pool{n}d(x, ({1,}2)).ravel()
    array([3., 5., 4.])
    >>> cyconv.max_pool{n}d(x, ({1,}2), return_indices=True)[1].ravel()
    array([1, 3, 4])
    """
    plan = _pool.plan(_n, x, None, None, kernel_size, stride, padding, dilation, ceil_mode)
    return _with_indices(x, plan, out) if return_indices else _pool.forward(_pool.MAX, x, plan, out)


def _max_pool_backward(
    grad_out: Array, x: Array, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0,
    dilation: IntLike = 1, ceil_mode: bool = False, indices: Indices | None = None, _n: int = 2,
) -> Array:  # fmt: skip
    """Gradient of `max_pool{n}d`: each element of `grad_out` goes to the cell that its maximum was read from.
    {Parameters: grad_out of} ``max_pool{n}d(x, kernel_size, ...)``
    x, kernel_size, stride, padding, dilation, ceil_mode
        As given to `max_pool{n}d`.
    {indices of} `max_pool{n}d`. The maxima are then not searched again and only the shape of `x` matters.
    {Returns: shape} of `x`
    {Raises: as} `max_pool{n}d`, and for a `grad_out` or `indices` of another shape, or an index outside the image.
    {Examples}
    >>> x = np.array([1.0, 3.0, 3.0, 2.0]).reshape(1, {1,}4)
    >>> cyconv.max_pool{n}d_backward(np.ones((1, {1,}1)), x, ({1,}4)).ravel()
    array([0., 1., 0., 0.])
    """
    _check.array("grad_out", grad_out)
    plan = _pool.plan(_n, x, grad_out, None, kernel_size, stride, padding, dilation, ceil_mode)
    return _pool.backward(_pool.MAX_BACKWARD, grad_out, x, x.shape, plan, indices)


def _adaptive_max_pool(
    x: Array, output_size: int | Sequence[int | None] | None, return_indices: bool = False, *,
    out: Array | None = None, _n: int = 2,
) -> Any:  # fmt: skip
    """Maximum of each channel over as many windows as asked for.

    Window `o` of an axis covers the positions from ``floor(o * size / output_size)`` up to, but without,
    ``ceil((o + 1) * size / output_size)``: windows may overlap and differ in size by one or two.
    {Parameters: x}
    output_size : int, None, or one of them per axis
        None keeps the size of the axis.
    return_indices : bool
        Also return where each maximum lies, as `max_pool{n}d` does.
    out : ndarray, shape of the result, optional
        Where to write the maxima; must not overlap `x`.
    {Returns: out}. NaN wins.
    indices : ndarray of int64, same shape, if `return_indices`
    {Raises: as} `max_pool{n}d`.
    {Examples}
    >>> x = np.array([1.0, 3.0, 2.0, 5.0, 4.0]).reshape(1, {1,}5)
    >>> cyconv.adaptive_max_pool{n}d(x, ({1,}2)).ravel()
    array([3., 5.])
    """
    plan = _pool.adaptive(_n, x, None, None, output_size)
    return _with_indices(x, plan, out) if return_indices else _pool.forward(_pool.MAX, x, plan, out)


def _adaptive_max_pool_backward(grad_out: Array, x: Array, *, indices: Indices | None = None, _n: int = 2) -> Array:
    """Gradient of `adaptive_max_pool{n}d`; the shape of `grad_out` tells the size of the output.
    {Parameters: grad_out of} ``adaptive_max_pool{n}d(x, ...)``
    x : ndarray
        As given to `adaptive_max_pool{n}d`.
    {indices of} `adaptive_max_pool{n}d`. The maxima are then not searched again.
    {Returns: shape} of `x`
    {Raises: as} `max_pool{n}d_backward`.
    {Examples}
    >>> x = np.array([1.0, 3.0, 2.0, 5.0, 4.0]).reshape(1, {1,}5)
    >>> cyconv.adaptive_max_pool{n}d_backward(np.ones((1, {1,}2)), x).ravel()
    array([0., 1., 0., 1., 0.])
    """
    _check.array("grad_out", grad_out)
    _check.spatial("grad_out", grad_out.shape, _n)
    plan = _pool.adaptive(_n, x, grad_out, None, grad_out.shape[-_n:])
    return _pool.backward(_pool.MAX_BACKWARD, grad_out, x, x.shape, plan, indices)


@_pool.public
def global_max_pool(
    x: Array, *, axes: int | None = None, return_indices: bool = False, out: Array | None = None
) -> Any:
    """Maximum of each channel over its whole plane.
    {Parameters}
    x, axes, out
        As in `global_avg_pool`.
    return_indices : bool
        Also return where each maximum lies, as `max_pool2d` does.
    {Returns: shape} (N, C, 1, ...)
        `out`, or a new array. The axes are kept, of length 1. NaN wins.
    indices : ndarray of int64, same shape, if `return_indices`
    {Raises: as} `max_pool2d`.
    {Examples}
    >>> cyconv.global_max_pool(np.arange(8.0).reshape(1, 2, 2, 2)).ravel()
    array([3., 7.])
    """
    n = _pool.global_axes(axes, _check.array("x", x).shape)
    plan = _pool.adaptive(n, x, None, None, 1)
    return _with_indices(x, plan, out) if return_indices else _pool.forward(_pool.MAX, x, plan, out)


@_pool.public
def global_max_pool_backward(
    grad_out: Array, x: Array, *, axes: int | None = None, indices: Indices | None = None
) -> Array:
    """Gradient of `global_max_pool`: each element of `grad_out` goes to the cell that its maximum was read from.
    {Parameters: grad_out of} ``global_max_pool(x)``
    x, axes
        As given to `global_max_pool`.
    {indices of} `global_max_pool`. The maxima are then not searched again.
    {Returns: shape} of `x`
    {Raises: as} `max_pool2d_backward`.
    {Examples}
    >>> cyconv.global_max_pool_backward(np.ones((1, 1, 1, 1)), np.arange(4.0).reshape(1, 1, 2, 2)).ravel()
    array([0., 0., 0., 1.])
    """
    _check.array("grad_out", grad_out)
    n = _pool.global_axes(axes, _check.array("x", x).shape)
    plan = _pool.adaptive(n, x, grad_out, None, 1)
    return _pool.backward(_pool.MAX_BACKWARD, grad_out, x, x.shape, plan, indices)


def _max_unpool(
    x: Array, indices: Indices, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0,
    output_size: Sequence[int] | None = None, _n: int = 2,
) -> Array:  # fmt: skip
    """Put the elements of `x` where `indices` say, into planes of zeros: a partial inverse of `max_pool{n}d`.
    {Parameters}
    x : ndarray of float32 or float64, shape (N, C, {out}) or (C, {out})
    indices : ndarray of int64, shape of `x`
        Row-major positions ``{W}`` in a plane of the result, as `max_pool{n}d` returns them. If one occurs several
        times in a plane, the last element counts.
    kernel_size, stride, padding
        As given to `max_pool{n}d`; they determine the size of the result. "same" and "same_lower" do not.
    output_size : sequence of int, optional
        Another size of the result, as several give the same output of a pooling: {n} integers, or its whole shape.
        Each may differ from ``(OW - 1) * stride - before - after + kernel_size`` by less than the stride.
    {Returns: shape} (N, C, {axes}) or (C, {axes})

    Raises
    ------
    TypeError
        As `max_pool{n}d`, and for indices that are not int64.
    ValueError
        For an index outside the plane, -1 included; parameters out of range; a size that cannot be.
    {Examples}
    >>> x = np.array([1.0, 3.0, 5.0, 2.0]).reshape(1, {1,}4)
    >>> out, indices = cyconv.max_pool{n}d(x, ({1,}2), return_indices=True)
    >>> cyconv.max_unpool{n}d(out, indices, ({1,}2)).ravel()
    array([0., 3., 5., 0.])
    """
    _check.array("x", x)
    _check.spatial("x", x.shape, _n)
    _check.indices("indices", indices, x.shape)
    kernel = _check.ints("kernel_size", kernel_size, _n, 1)
    step = kernel if stride is None else _check.ints("stride", stride, _n, 1)
    size = x.shape[-_n:]
    if padding in ("same", "same_lower"):
        raise ValueError(f'padding of an unpooling must be integers or "valid", got {padding!r}')
    pads = _check.padding(padding, size, kernel, step, (1,) * _n)
    sizes = tuple([(m - 1) * s - sum(pad) + k for m, s, pad, k in zip(size, step, pads, kernel, strict=True)])
    if output_size is not None:
        if not isinstance(output_size, (tuple, list)) or len(output_size) not in (_n, x.ndim):
            raise ValueError(f"output_size must be {_n} integers, or the whole shape, got {output_size!r}")
        asked = tuple([_check.integer("output_size", m, 1) for m in output_size[-_n:]])
        same = len(output_size) == _n or tuple(output_size[:-_n]) == x.shape[:-_n]
        if not same or any(abs(m - a) >= s for m, a, s in zip(sizes, asked, step, strict=True)):
            raise ValueError(f"output_size must differ from {sizes} by less than the stride {step}, got {output_size}")
        sizes = asked
    if min(sizes) < 1:
        raise ValueError(f"the output would be empty: size {sizes}")
    result: Array = np.empty(x.shape[:-_n] + sizes, x.dtype)
    if result.size:
        row = Axis(math.prod(sizes), math.prod(size), 0, 1, 0, 0, 1)
        run, _, _, _, planes, packed = _pool.plan_of([row], x, None, (*x.shape[:-_n], row.size))
        rest = result.ravel(), packed, planes, _dispatch.threads, _dispatch.scratch
        if run(_pool.ASSIGN, None, _pool.flat(x), _pool.flat(indices), None, *rest):
            _check.refuse_indices("indices", indices, sizes)
    return result


def _max_unpool_backward(grad_out: Array, indices: Indices, *, _n: int = 2) -> Array:
    """Gradient of `max_unpool{n}d`: what lies in `grad_out` at the indices.
    {Parameters: grad_out of} ``max_unpool{n}d(x, indices, ...)``
    indices : ndarray of int64, the shape of `x`
        As given to `max_unpool{n}d`. Of elements with the same index each gets the gradient, as in torch.
    {Returns: shape} of `indices`
    {Raises: as} `max_unpool{n}d`.
    {Examples}
    >>> grad_out = np.arange(4.0).reshape(1, {1,}4)
    >>> cyconv.max_unpool{n}d_backward(grad_out, np.array([1, 2]).reshape(1, {1,}2)).ravel()
    array([1., 2.])
    """
    _check.array("grad_out", grad_out)
    _check.spatial("grad_out", grad_out.shape, _n)
    _check.indices("indices", indices)
    _check.spatial("indices", indices.shape, _n)
    planes, size = indices.shape[:-_n], grad_out.shape[-_n:]
    _check.same_shape("grad_out", grad_out, planes + size)
    if not indices.size:
        return np.empty(indices.shape, grad_out.dtype)
    _check.inside("indices", indices, size)
    rows: Any = np.take_along_axis(grad_out.reshape(*planes, -1), indices.reshape(*planes, -1), -1)
    return rows.reshape(indices.shape)  # type: ignore[no-any-return]


max_pool1d, max_pool2d, max_pool3d = _pool.each(_max_pool)
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = _pool.each(_max_pool_backward)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = _pool.each(_adaptive_max_pool)
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = _pool.each(
    _adaptive_max_pool_backward
)
max_unpool1d, max_unpool2d, max_unpool3d = _pool.each(_max_unpool)
max_unpool1d_backward, max_unpool2d_backward, max_unpool3d_backward = _pool.each(_max_unpool_backward)
