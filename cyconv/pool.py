"""Pooling: maxima, averages and p-norms over windows, and their gradients. Arguments are checked, results allocated.

Each function is written once, for any number of axes, and published for one, two and three of them by `_each`.
"""

from __future__ import annotations

import inspect
import math
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import numpy as np

from . import _check, _dispatch, _runtime
from ._windows import Axis, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from ._check import Array, IntLike, Ints, PaddingLike

    Indices = npt.NDArray[np.int64]

F = TypeVar("F", bound="Callable[..., Any]")

# What a kernel computes (pyx/pool.pyx).
_MAX, _AVERAGE, _INDICES, _MAX_BACKWARD, _AVERAGE_BACKWARD, _SCATTER, _ASSIGN = range(7)
_NO_AXIS = Axis(1, 1, 1, 1, 0, 0, 1)  # of the axes that 1-D and 2-D pooling lack
# What stands for the axes in docstrings.
_WORDS = [
    {"{n}": "1", "{axes}": "W", "{out}": "OW", "{1,}": "", "{int}": "int or (int,)", "{W}": "x"},
    {"{n}": "2", "{axes}": "H, W", "{out}": "OH, OW", "{1,}": "1, ", "{int}": "int or (int, int)", "{W}": "y * W + x"},
    {
        "{n}": "3", "{axes}": "D, H, W", "{out}": "OD, OH, OW", "{1,}": "1, 1, ", "{int}": "int or (int, int, int)",
        "{W}": "(z * H + y) * W + x",
    },
]  # fmt: skip


class _Plan(NamedTuple):
    """What follows from the shapes, the dtype and the parameters of a call, and need not be found out again."""

    run: Any  # the kernel
    dtype: Any
    shape: Ints  # of the output
    size: Ints  # of the axes of the input
    planes: int
    tables: bytes


_plans: dict[Any, _Plan] = {}
_tables = lru_cache(maxsize=256)(tables)


def _each(function: F) -> tuple[F, F, F]:
    """Return `function` for one, two and three axes: with that default of its last parameter, and in its docstring."""
    found: list[Any] = []
    signature = inspect.signature(function)
    visible = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "_n"])
    for n, words in enumerate(_WORDS, 1):
        name = f"{function.__name__.strip('_').removesuffix('_backward')}{n}d"
        name += "_backward" * function.__name__.endswith("_backward")
        copy: Any = FunctionType(function.__code__, function.__globals__, name, function.__defaults__)
        copy.__kwdefaults__ = {**(function.__kwdefaults__ or {}), "_n": n}
        copy.__annotations__, copy.__module__ = function.__annotations__, function.__module__
        copy.__signature__, copy.__qualname__, copy.__doc__ = visible, name, function.__doc__
        for word, meaning in words.items():
            copy.__doc__ = copy.__doc__.replace(word, meaning)
        found.append(copy)
    function.__doc__ = None  # its examples are not Python yet
    one, two, three = found
    return one, two, three


def _plan(
    kind: int, n: int, x: Any, grad_out: Any, shape: Ints | None, kernel: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: Any, include_pad: Any = True, divisor: Any = None,
) -> _Plan:  # fmt: skip
    """Check the arguments of a call and return its plan; without x, its shape is given. Known plans are checked."""
    given = x if shape is None else grad_out
    parameters = (
        kind, n, shape or 0, kernel, kernel if stride is None else stride, padding, dilation, 1 if ceil_mode else 0,
        1 if include_pad else 0, 0 if divisor is None else _check.integer("divisor_override", divisor, 1),
    )  # fmt: skip
    key = _runtime.key(_dispatch._isa, np.ndarray, given, given if grad_out is None else grad_out, parameters)
    return _plans.get(key) or _new_plan(key, x, grad_out, shape, *parameters)


def _new_plan(
    key: Any, x: Any, grad_out: Any, shape: Ints | None, kind: int, n: int, _: Any, kernel: Any, stride: Any,
    padding: Any, dilation: Any, ceil_mode: int, include_pad: int, divisor: int,
) -> _Plan:  # fmt: skip
    if shape is None:
        shape = _check.array("x", x).shape
        _check.spatial("x", shape, n)
    size = shape[-n:]
    kernel = _check.ints("kernel_size", kernel, n, 1)
    stride = _check.ints("stride", stride, n, 1)
    dilation = _check.ints("dilation", dilation, n, 1)
    pads = _check.padding(padding, size, kernel, stride, dilation)
    out = _check.output_size(size, kernel, stride, pads, dilation, bool(ceil_mode))
    axes = []
    for m, o, k, s, pair, d in zip(size, out, kernel, stride, pads, dilation, strict=True):
        axes.append(Axis(m, o, k, s if o > 1 else 1, pair[0], pair[1], d))
    plan = _packed(kind, n, x, grad_out, shape, axes, bool(include_pad), divisor)
    if key is not None and len(plan.tables) < 1 << 16:
        if len(_plans) >= 1024:
            _plans.clear()
        _plans[key] = plan
    return plan


def _packed(
    kind: int, n: int, x: Any, grad_out: Any, shape: Ints, axes: list[Axis], include_pad: bool = True, divisor: int = 0
) -> _Plan:
    """Return the plan for these axes; check `grad_out`, if there is one."""
    out = shape[:-n] + tuple([a.out for a in axes])
    if grad_out is not None:
        _check.array("grad_out", grad_out)
        _check.same_dtype(grad_out=grad_out, x=x)
        _check.same_shape("grad_out", grad_out, out)
    dtype = (grad_out if x is None else x).dtype
    backward = kind in (_MAX_BACKWARD, _AVERAGE_BACKWARD)
    packed = _tables(*[_NO_AXIS] * (3 - n), *axes, dtype, backward, include_pad, divisor)
    return _Plan(_dispatch.kernels("pool", dtype).run, dtype, out, shape[-n:], math.prod(shape[:-n]), packed)


def _adaptive(kind: int, n: int, x: Any, grad_out: Any, shape: Ints | None, output_size: Any) -> _Plan:
    """Check the arguments of an adaptive pooling and return its plan; None keeps an axis."""
    if shape is None:
        shape = _check.array("x", x).shape
        _check.spatial("x", shape, n)
    sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * n
    if len(sizes) != n:
        raise ValueError(f"output_size must be an integer, None or {n} of them, got {output_size!r}")
    axes = []
    for m, size in zip(shape[-n:], sizes, strict=True):
        o = m if size is None else _check.integer("output_size", size, 1)
        window, stride = (m // o, m // o) if m % o == 0 else (0, 1)
        axes.append(Axis(m, o, window, stride if o > 1 else 1, 0, 0, 1))
    return _packed(kind, n, x, grad_out, shape, axes)


def _axes(axes: Any, shape: Ints) -> int:
    """Return how many axes global pooling is over, by default all after N and C."""
    n = len(shape) - 2 if axes is None else _check.integer("axes", axes, 1, 3)
    if not 1 <= n <= 3:
        raise ValueError(f"x must have 3 to 5 axes (N, C and one to three more), got shape {shape}")
    return n


def _flat(a: Any) -> Any:
    """Return a one-dimensional view, or copy where the kernels need one."""
    if type(a) is np.ndarray and a.flags.carray:
        return a.reshape(-1)
    return _check.contiguous(a if type(a) is np.ndarray else a.view(np.ndarray)).reshape(-1)


def _forward(kind: int, x: Any, plan: _Plan, out: Any) -> Any:
    """Return the maxima (and their indices) or averages."""
    run, dtype, shape, _, planes, packed = plan
    result = np.empty(shape, dtype) if out is None else _check.output("out", out, shape, dtype, x)
    indices = np.empty(shape, np.int64) if kind == _INDICES else None
    if result.size:
        buffer = result if out is None or result.flags.c_contiguous else np.empty(shape, dtype)
        given = None if indices is None else indices.reshape(-1)
        run(kind, _flat(x), None, None, given, _flat(buffer), packed, planes, _dispatch.threads, _dispatch.scratch)
        if buffer is not result:
            result[...] = buffer
    return result if indices is None else (result, indices)


def _backward(kind: int, grad_out: Any, x: Any, shape: Ints, plan: _Plan, indices: Any = None) -> Any:
    """Return the gradient of x, from x, or the indices of its maxima, or neither."""
    run, dtype, _, size, planes, packed = plan
    grad_x = np.empty(shape, dtype)
    if indices is not None:
        _check.indices("indices", indices, plan.shape)
        kind, x, indices = _SCATTER, None, _flat(indices)
    if grad_x.size and run(
        kind, None if x is None else _flat(x), _flat(grad_out), indices, None, grad_x.reshape(-1), packed, planes,
        _dispatch.threads, _dispatch.scratch,
    ):  # fmt: skip
        _check.refuse_indices("indices", indices, size)
    return grad_x


def _exponents(a: Any, p: float, plan: _Plan) -> Iterator[tuple[int, Any]]:
    """Yield an exponent e and where it applies (None: everywhere): there (a / 2^e)^p and its sums stay in range.

    Usually e = 0 is good for all. Elsewhere the windows are sorted by the exponent of their maximum; what is so much
    smaller than the maximum that its power vanishes does not count in the sum either.
    """
    info = np.finfo(a.dtype)
    step = int((-info.minexp - info.nmant) / p)  # 2^-step and half of it have powers that are exact
    high = int((info.maxexp - 1 - math.log2(math.prod(plan.size))) / p)
    low, high = np.ldexp(a.dtype.type(1), [-step, high])
    if np.all((a == 0) | (a >= low) & (a <= high)):
        yield 0, None
        return
    largest = _forward(_MAX, a, plan, None)
    classes = np.ceil(np.frexp(largest)[1] / step).astype(int)
    classes[~(np.isfinite(largest) & (largest > 0))] = 0
    for c in np.unique(classes):
        yield int(c) * step, classes == c


def _norms(a: Any, p: float, plan: _Plan) -> Any:
    """(sum of a^p over each window)^(1/p), for a >= 0."""
    if p != 1:
        a = a * a if p == 2 else a**p
    sums = _forward(_AVERAGE, a, plan, None)
    return sums if p == 1 else np.sqrt(sums) if p == 2 else sums ** (1 / p)


def _order(p: Any) -> float:
    """Check the order of a p-norm."""
    if isinstance(p, (bool, np.bool_)) or not isinstance(p, (int, float, np.integer, np.floating)):
        raise TypeError(f"p must be a number, got {p!r}")
    if not 1 <= p <= 100:
        raise ValueError(f"p must be in 1..100, got {p!r}")
    return float(p)


if TYPE_CHECKING:

    @overload
    def _max_pool(
        x: Array, kernel_size: IntLike, *, stride: IntLike | None = ..., padding: PaddingLike = ...,
        dilation: IntLike = ..., ceil_mode: bool = ..., return_indices: Literal[False] = ..., out: Array | None = ...,
    ) -> Array: ...  # fmt: skip
    @overload
    def _max_pool(
        x: Array, kernel_size: IntLike, *, stride: IntLike | None = ..., padding: PaddingLike = ...,
        dilation: IntLike = ..., ceil_mode: bool = ..., return_indices: Literal[True], out: Array | None = ...,
    ) -> tuple[Array, Indices]: ...  # fmt: skip


def _max_pool(
    x: Array,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    out: Array | None = None,
    _n: int = 2,
) -> Any:
    """Maximum over windows of each channel.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, {axes}) or (C, {axes})
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

    Returns
    -------
    ndarray, shape (N, C, {out}) or (C, {out})
        `out`, or a new array; ``OW = (W + before + after - dilation * (kernel_size - 1) - 1) // stride + 1``.
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

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 4.0]).reshape(1, {1,}6)
    >>> cyconv.max_pool{n}d(x, ({1,}2)).ravel()
    array([3., 5., 4.])
    >>> cyconv.max_pool{n}d(x, ({1,}2), return_indices=True)[1].ravel()
    array([1, 3, 4])
    """
    kind = _INDICES if return_indices else _MAX
    plan = _plan(kind, _n, x, None, None, kernel_size, stride, padding, dilation, ceil_mode)
    return _forward(kind, x, plan, out)


def _max_pool_backward(
    grad_out: Array,
    x: Array,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    indices: Indices | None = None,
    _n: int = 2,
) -> Array:
    """Gradient of `max_pool{n}d`: each element of `grad_out` goes to the cell that its maximum was read from.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``max_pool{n}d(x, kernel_size, ...)``
    x, kernel_size, stride, padding, dilation, ceil_mode
        As given to `max_pool{n}d`.
    indices : ndarray of int64, optional
        As returned by `max_pool{n}d`. The maxima are then not searched again and only the shape of `x` matters.

    Returns
    -------
    ndarray, shape of `x`

    Raises
    ------
    TypeError, ValueError
        As `max_pool{n}d`, and for a `grad_out` or `indices` of another shape, or an index outside the image.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.array([1.0, 3.0, 3.0, 2.0]).reshape(1, {1,}4)
    >>> cyconv.max_pool{n}d_backward(np.ones((1, {1,}1)), x, ({1,}4)).ravel()
    array([0., 1., 0., 0.])
    """
    _check.array("grad_out", grad_out)
    plan = _plan(_MAX_BACKWARD, _n, x, grad_out, None, kernel_size, stride, padding, dilation, ceil_mode)
    result: Array = _backward(_MAX_BACKWARD, grad_out, x, x.shape, plan, indices)
    return result


def _avg_pool(
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
    _n: int = 2,
) -> Array:
    """Average over windows of each channel.

    Parameters
    ----------
    x, kernel_size, stride, padding, dilation, ceil_mode, out
        As in `max_pool{n}d`.
    count_include_pad : bool
        Whether the divisor counts the cells of the padding. Those beyond the end padding, which `ceil_mode` can reach,
        are never counted.
    divisor_override : int, optional
        Divide by this instead.

    Returns
    -------
    ndarray, shape (N, C, {out}) or (C, {out})
        `out`, or a new array. A window that counts no cells gives NaN (0 / 0).

    Raises
    ------
    TypeError, ValueError
        As `max_pool{n}d`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.avg_pool{n}d(np.arange(4.0).reshape(1, {1,}4), ({1,}2), stride=1).ravel()
    array([0.5, 1.5, 2.5])
    """
    average = count_include_pad, divisor_override
    plan = _plan(_AVERAGE, _n, x, None, None, kernel_size, stride, padding, dilation, ceil_mode, *average)
    result: Array = _forward(_AVERAGE, x, plan, out)
    return result


def _avg_pool_backward(
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
    _n: int = 2,
) -> Array:
    """Gradient of `avg_pool{n}d`: each element of `grad_out` is spread evenly over its window.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``avg_pool{n}d(x, kernel_size, ...)``
    input_shape : sequence of int
        The shape of `x`.
    kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
        As given to `avg_pool{n}d`.

    Returns
    -------
    ndarray, shape `input_shape`

    Raises
    ------
    TypeError, ValueError
        As `avg_pool{n}d`, and for a `grad_out` of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.avg_pool{n}d_backward(np.ones((1, {1,}1)), (1, {1,}4), ({1,}4)).ravel()
    array([0.25, 0.25, 0.25, 0.25])
    """
    _check.array("grad_out", grad_out)
    shape = _check.shape("input_shape", input_shape, _n)
    windows = kernel_size, stride, padding, dilation, ceil_mode
    plan = _plan(_AVERAGE_BACKWARD, _n, None, grad_out, shape, *windows, count_include_pad, divisor_override)
    result: Array = _backward(_AVERAGE_BACKWARD, grad_out, None, shape, plan)
    return result


def _lp_pool(
    x: Array,
    p: float,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    out: Array | None = None,
    _n: int = 2,
) -> Array:
    """p-norm over windows of each channel: ``(sum of |x|^p)^(1/p)``.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, {axes}) or (C, {axes})
    p : float
        1 to 100. 1 gives the sum of the magnitudes, 2 the Euclidean norm; large values come close to the maximum.
    kernel_size, stride, padding, dilation, ceil_mode, out
        As in `max_pool{n}d`.

    Returns
    -------
    ndarray, shape (N, C, {out}) or (C, {out})
        `out`, or a new array. Powers that leave the dtype's range do no harm to a result that is in it.

    Raises
    ------
    TypeError, ValueError
        As `max_pool{n}d`, and if `p` is not a number of 1 to 100.

    Notes
    -----
    This is ONNX's LpPool. torch's lp_pool adds up x^p with its sign, so that for odd p values cancel; with `ceil_mode`
    it scales the sum of a window that ends outside the image to the full number of cells.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.lp_pool{n}d(np.array([3.0, -4.0]).reshape(1, {1,}2), 2, ({1,}2)).ravel()
    array([5.])
    """
    p = _order(p)
    plan = _plan(_AVERAGE, _n, x, None, None, kernel_size, stride, padding, dilation, ceil_mode, True, 1)
    result: Array = _check.output("out", out, plan.shape, x.dtype, x)
    if result.size:
        with np.errstate(all="ignore"):
            a = np.abs(np.asarray(x))
            for e, where in _exponents(a, p, plan):
                norms = _norms(np.ldexp(a, -e) if e else a, p, plan)
                np.copyto(result, np.ldexp(norms, e) if e else norms, where=True if where is None else where)
    return result


def _lp_pool_backward(
    grad_out: Array,
    x: Array,
    p: float,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    ceil_mode: bool = False,
    _n: int = 2,
) -> Array:
    """Gradient of `lp_pool{n}d`: a cell gets ``grad_out * sign(x) * (|x| / out)^(p - 1)`` of each window that it is in.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``lp_pool{n}d(x, p, kernel_size, ...)``
    x, p, kernel_size, stride, padding, dilation, ceil_mode
        As given to `lp_pool{n}d`.

    Returns
    -------
    ndarray, shape of `x`
        Zero where `x` is zero.

    Raises
    ------
    TypeError, ValueError
        As `lp_pool{n}d`, and for a `grad_out` of another shape or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.array([3.0, -4.0]).reshape(1, {1,}2)
    >>> cyconv.lp_pool{n}d_backward(np.ones((1, {1,}1)), x, 2, ({1,}2)).ravel()
    array([ 0.6, -0.8])
    """
    p = _order(p)
    _check.array("grad_out", grad_out)
    windows = kernel_size, stride, padding, dilation, ceil_mode, True, 1
    plan = _plan(_AVERAGE, _n, x, None, None, *windows)
    _check.same_dtype(grad_out=grad_out, x=x)
    _check.same_shape("grad_out", grad_out, plan.shape)
    back = _plan(_AVERAGE_BACKWARD, _n, x, grad_out, None, *windows)
    result: Any = np.zeros(x.shape, x.dtype)
    if result.size:
        with np.errstate(all="ignore"):
            a = np.abs(np.asarray(x))
            for e, where in _exponents(a, p, plan):
                scaled = np.ldexp(a, -e) if e else a
                norms = _norms(scaled, p, plan)
                shares = np.where(norms == 0, 0, grad_out * norms ** (1 - p))
                if where is not None:
                    shares = np.where(where, shares, 0)
                part = _backward(_AVERAGE_BACKWARD, shares, None, x.shape, back) * scaled ** (p - 1)
                result += part if where is None else np.where(part == part, part, 0)
            result *= np.sign(x)
    return result  # type: ignore[no-any-return]


def _adaptive_max_pool(
    x: Array, output_size: int | Sequence[int | None] | None, return_indices: bool = False, *,
    out: Array | None = None, _n: int = 2,
) -> Any:  # fmt: skip
    """Maximum of each channel over as many windows as asked for.

    Window `o` of an axis covers the positions from ``floor(o * size / output_size)`` up to, but without,
    ``ceil((o + 1) * size / output_size)``: windows may overlap and differ in size by one or two.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, {axes}) or (C, {axes})
    output_size : int, None, or one of them per axis
        None keeps the size of the axis.
    return_indices : bool
        Also return where each maximum lies, as `max_pool{n}d` does.
    out : ndarray, shape of the result, optional
        Where to write the maxima; must not overlap `x`.

    Returns
    -------
    ndarray, shape (N, C, {out}) or (C, {out})
        `out`, or a new array. NaN wins.
    indices : ndarray of int64, same shape, if `return_indices`

    Raises
    ------
    TypeError, ValueError
        As `max_pool{n}d`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.array([1.0, 3.0, 2.0, 5.0, 4.0]).reshape(1, {1,}5)
    >>> cyconv.adaptive_max_pool{n}d(x, ({1,}2)).ravel()
    array([3., 5.])
    """
    kind = _INDICES if return_indices else _MAX
    return _forward(kind, x, _adaptive(kind, _n, x, None, None, output_size), out)


def _adaptive_max_pool_backward(grad_out: Array, x: Array, *, indices: Indices | None = None, _n: int = 2) -> Array:
    """Gradient of `adaptive_max_pool{n}d`; the shape of `grad_out` tells the size of the output.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``adaptive_max_pool{n}d(x, ...)``
    x : ndarray
        As given to `adaptive_max_pool{n}d`.
    indices : ndarray of int64, optional
        As returned by `adaptive_max_pool{n}d`. The maxima are then not searched again.

    Returns
    -------
    ndarray, shape of `x`

    Raises
    ------
    TypeError, ValueError
        As `max_pool{n}d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.array([1.0, 3.0, 2.0, 5.0, 4.0]).reshape(1, {1,}5)
    >>> cyconv.adaptive_max_pool{n}d_backward(np.ones((1, {1,}2)), x).ravel()
    array([0., 1., 0., 1., 0.])
    """
    _check.array("grad_out", grad_out)
    _check.spatial("grad_out", grad_out.shape, _n)
    plan = _adaptive(_MAX_BACKWARD, _n, x, grad_out, None, grad_out.shape[-_n:])
    result: Array = _backward(_MAX_BACKWARD, grad_out, x, x.shape, plan, indices)
    return result


def _adaptive_avg_pool(
    x: Array, output_size: int | Sequence[int | None] | None, *, out: Array | None = None, _n: int = 2
) -> Array:
    """Average of each channel over as many windows as asked for.

    Parameters
    ----------
    x, output_size, out
        As in `adaptive_max_pool{n}d`, with the same windows.

    Returns
    -------
    ndarray, shape (N, C, {out}) or (C, {out})
        `out`, or a new array.

    Raises
    ------
    TypeError, ValueError
        As `max_pool{n}d`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.adaptive_avg_pool{n}d(np.arange(5.0).reshape(1, {1,}5), ({1,}2)).ravel()
    array([1., 3.])
    """
    result: Array = _forward(_AVERAGE, x, _adaptive(_AVERAGE, _n, x, None, None, output_size), out)
    return result


def _adaptive_avg_pool_backward(grad_out: Array, input_shape: Sequence[int], *, _n: int = 2) -> Array:
    """Gradient of `adaptive_avg_pool{n}d`; the shape of `grad_out` tells the size of the output.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``adaptive_avg_pool{n}d(x, ...)``
    input_shape : sequence of int
        The shape of `x`.

    Returns
    -------
    ndarray, shape `input_shape`

    Raises
    ------
    TypeError, ValueError
        As `avg_pool{n}d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.adaptive_avg_pool{n}d_backward(np.ones((1, {1,}2)), (1, {1,}4)).ravel()
    array([0.5, 0.5, 0.5, 0.5])
    """
    _check.array("grad_out", grad_out)
    _check.spatial("grad_out", grad_out.shape, _n)
    shape = _check.shape("input_shape", input_shape, _n)
    plan = _adaptive(_AVERAGE_BACKWARD, _n, None, grad_out, shape, grad_out.shape[-_n:])
    result: Array = _backward(_AVERAGE_BACKWARD, grad_out, None, shape, plan)
    return result


def _max_unpool(
    x: Array,
    indices: Indices,
    kernel_size: IntLike,
    *,
    stride: IntLike | None = None,
    padding: PaddingLike = 0,
    output_size: Sequence[int] | None = None,
    _n: int = 2,
) -> Array:
    """Put the elements of `x` where `indices` say, into planes of zeros: a partial inverse of `max_pool{n}d`.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, {out}) or (C, {out})
    indices : ndarray of int64, shape of `x`
        Row-major positions ``{W}`` in a plane of the result, as `max_pool{n}d` returns them. If one occurs several
        times in a plane, the last element counts.
    kernel_size, stride, padding
        As given to `max_pool{n}d`; they determine the size of the result. "same" and "same_lower" do not.
    output_size : sequence of int, optional
        Another size of the result, as several give the same output of a pooling: {n} integers, or its whole shape.
        Each may differ from ``(OW - 1) * stride - before - after + kernel_size`` by less than the stride.

    Returns
    -------
    ndarray, shape (N, C, {axes}) or (C, {axes})

    Raises
    ------
    TypeError
        As `max_pool{n}d`, and for indices that are not int64.
    ValueError
        For an index outside the plane, -1 included; parameters out of range; a size that cannot be.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
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
        flat = Axis(math.prod(sizes), math.prod(size), 0, 1, 0, 0, 1)
        run, _, _, _, planes, packed = _packed(_ASSIGN, 1, x, None, (*x.shape[:-_n], flat.size), [flat])
        rest = result.reshape(-1), packed, planes, _dispatch.threads, _dispatch.scratch
        if run(_ASSIGN, None, _flat(x), _flat(indices), None, *rest):
            _check.refuse_indices("indices", indices, sizes)
    return result


def _max_unpool_backward(grad_out: Array, indices: Indices, *, _n: int = 2) -> Array:
    """Gradient of `max_unpool{n}d`: what lies in `grad_out` at the indices.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``max_unpool{n}d(x, indices, ...)``
    indices : ndarray of int64, the shape of `x`
        As given to `max_unpool{n}d`. Of elements with the same index each gets the gradient, as in torch.

    Returns
    -------
    ndarray, shape of `indices`

    Raises
    ------
    TypeError, ValueError
        As `max_unpool{n}d`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
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
    flat, rows = grad_out.reshape(*planes, -1), indices.reshape(*planes, -1)
    result: Any = np.take_along_axis(flat, rows, -1)
    return result.reshape(indices.shape)  # type: ignore[no-any-return]


def global_avg_pool(x: Array, *, axes: int | None = None, out: Array | None = None) -> Array:
    """Average of each channel over its whole plane.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, W), (N, C, H, W) or (N, C, D, H, W)
    axes : int, optional
        How many axes to average over, 1 to 3, by default all after N and C. Needed where there is no batch axis.
    out : ndarray, shape of the result, optional
        Where to write the averages; must not overlap `x`.

    Returns
    -------
    ndarray, shape (N, C, 1, ...)
        `out`, or a new array. The axes are kept, of length 1.

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.global_avg_pool(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[[[1.5]],
    <BLANKLINE>
            [[5.5]]]])
    """
    n = _axes(axes, _check.array("x", x).shape)
    result: Array = _forward(_AVERAGE, x, _adaptive(_AVERAGE, n, x, None, None, 1), out)
    return result


def global_avg_pool_backward(grad_out: Array, input_shape: Sequence[int], *, axes: int | None = None) -> Array:
    """Gradient of `global_avg_pool`: each element of `grad_out` is spread evenly over its plane.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``global_avg_pool(x)``
    input_shape : sequence of int
        The shape of `x`.
    axes : int, optional
        As given to `global_avg_pool`.

    Returns
    -------
    ndarray, shape `input_shape`

    Raises
    ------
    TypeError, ValueError
        As `global_avg_pool`, and for a `grad_out` of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.global_avg_pool_backward(np.ones((1, 1, 1, 1)), (1, 1, 2, 2)).ravel()
    array([0.25, 0.25, 0.25, 0.25])
    """
    _check.array("grad_out", grad_out)
    n = _axes(axes, grad_out.shape)
    shape = _check.shape("input_shape", input_shape, n)
    plan = _adaptive(_AVERAGE_BACKWARD, n, None, grad_out, shape, 1)
    result: Array = _backward(_AVERAGE_BACKWARD, grad_out, None, shape, plan)
    return result


def global_max_pool(
    x: Array, *, axes: int | None = None, return_indices: bool = False, out: Array | None = None
) -> Any:
    """Maximum of each channel over its whole plane.

    Parameters
    ----------
    x, axes, out
        As in `global_avg_pool`.
    return_indices : bool
        Also return where each maximum lies, as `max_pool2d` does.

    Returns
    -------
    ndarray, shape (N, C, 1, ...)
        `out`, or a new array. The axes are kept, of length 1. NaN wins.
    indices : ndarray of int64, same shape, if `return_indices`

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.global_max_pool(np.arange(8.0).reshape(1, 2, 2, 2)).ravel()
    array([3., 7.])
    """
    n, kind = _axes(axes, _check.array("x", x).shape), _INDICES if return_indices else _MAX
    return _forward(kind, x, _adaptive(kind, n, x, None, None, 1), out)


def global_max_pool_backward(
    grad_out: Array, x: Array, *, axes: int | None = None, indices: Indices | None = None
) -> Array:
    """Gradient of `global_max_pool`: each element of `grad_out` goes to the cell that its maximum was read from.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``global_max_pool(x)``
    x, axes
        As given to `global_max_pool`.
    indices : ndarray of int64, optional
        As returned by `global_max_pool`. The maxima are then not searched again.

    Returns
    -------
    ndarray, shape of `x`

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> cyconv.global_max_pool_backward(np.ones((1, 1, 1, 1)), np.arange(4.0).reshape(1, 1, 2, 2)).ravel()
    array([0., 0., 0., 1.])
    """
    n = _axes(axes, _check.array("x", x).shape)
    plan = _adaptive(_MAX_BACKWARD, n, x, grad_out, None, 1)
    result: Array = _backward(_MAX_BACKWARD, grad_out, x, x.shape, plan, indices)
    return result


max_pool1d, max_pool2d, max_pool3d = _each(_max_pool)
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = _each(_max_pool_backward)
avg_pool1d, avg_pool2d, avg_pool3d = _each(_avg_pool)
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = _each(_avg_pool_backward)
lp_pool1d, lp_pool2d, lp_pool3d = _each(_lp_pool)
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = _each(_lp_pool_backward)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = _each(_adaptive_max_pool)
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = _each(
    _adaptive_max_pool_backward
)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = _each(_adaptive_avg_pool)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = _each(
    _adaptive_avg_pool_backward
)
max_unpool1d, max_unpool2d, max_unpool3d = _each(_max_unpool)
max_unpool1d_backward, max_unpool2d_backward, max_unpool3d_backward = _each(_max_unpool_backward)
