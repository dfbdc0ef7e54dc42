"""What the functions of `cyconv.pool` share: one, two and three axes, docstrings, plans, and calls of the kernels."""

from __future__ import annotations

import inspect
import math
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from . import _check, _dispatch, _runtime
from ._windows import Axis, tables

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from ._check import Array, Ints

    Indices = npt.NDArray[np.int64]

F = TypeVar("F", bound="Callable[..., Any]")

# What a kernel computes (pyx/pool.pyx).
MAX, AVERAGE, INDICES, MAX_BACKWARD, AVERAGE_BACKWARD, SCATTER, ASSIGN = range(7)
_NO_AXIS = Axis(1, 1, 1, 1, 0, 0, 1)  # of the axes that 1-D and 2-D pooling lack
# What stands for words in braces in docstrings: what is said often (a section with the empty line above it), the axes.
_PHRASES = {
    "{Parameters: x}": "{Parameters}\nx : ndarray of float32 or float64, shape (N, C, {axes}) or (C, {axes})",
    "{Parameters: grad_out of}": "{Parameters}\ngrad_out : ndarray, the shape of the result of",
    "{Parameters}": "\nParameters\n----------",
    "{indices of}": "indices : ndarray of int64, optional\n    As returned by",
    "{input_shape}": "input_shape : sequence of int\n    The shape of `x`.",
    "{Returns: out}": "{Returns: shape} (N, C, {out}) or (C, {out})\n    `out`, or a new array",
    "{Returns: shape}": "\nReturns\n-------\nndarray, shape",
    "{Raises: as}": "\nRaises\n------\nTypeError, ValueError\n    As",
    "{Examples}": "\nExamples\n--------\n>>> import numpy as np\n>>> import cyconv",
}
_WORDS = [
    {"{n}": "1", "{axes}": "W", "{out}": "OW", "{1,}": "", "{int}": "int or (int,)", "{W}": "x"},
    {"{n}": "2", "{axes}": "H, W", "{out}": "OH, OW", "{1,}": "1, ", "{int}": "int or (int, int)", "{W}": "y * W + x"},
    {
        "{n}": "3", "{axes}": "D, H, W", "{out}": "OD, OH, OW", "{1,}": "1, 1, ", "{int}": "int or (int, int, int)",
        "{W}": "(z * H + y) * W + x",
    },
]  # fmt: skip


def public(function: F, words: dict[str, str] = _WORDS[1]) -> F:
    """Return `function`, a member of `cyconv.pool`, with the words of its docstring replaced."""
    doc = inspect.cleandoc(function.__doc__ or "")
    for word, meaning in (_PHRASES | words).items():
        doc = doc.replace(word, meaning)
    function.__doc__, function.__module__ = doc, "cyconv.pool"
    return function


def each(function: F) -> tuple[F, F, F]:
    """Return `function` for one, two and three axes: with that default of its last parameter, and in its docstring."""
    signature = inspect.signature(function)
    visible = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "_n"])
    stem, backward, _ = function.__name__[1:].partition("_backward")
    found: list[Any] = []
    for n, words in enumerate(_WORDS, 1):
        name = f"{stem}{n}d{backward}"
        copy: Any = FunctionType(function.__code__, function.__globals__, name, function.__defaults__)
        copy.__kwdefaults__ = (function.__kwdefaults__ or {}) | {"_n": n}
        copy.__qualname__, copy.__doc__ = name, function.__doc__
        copy.__annotations__, copy.__signature__ = function.__annotations__, visible
        found.append(public(copy, words))
    function.__doc__ = None  # its examples are not Python yet
    one, two, three = found
    return one, two, three


class Plan(NamedTuple):
    """What follows from the shapes, the dtype and the parameters of a call, and need not be found out again."""

    run: Any  # the kernel
    dtype: Any
    shape: Ints  # of the output
    size: Ints  # of the axes of the input
    planes: int
    tables: bytes


_plans: dict[Any, Plan] = {}
_tables = lru_cache(maxsize=256)(tables)


def plan(
    n: int, x: Any, grad_out: Any, shape: Ints | None, kernel: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: Any, include_pad: Any = True, divisor: Any = None,
) -> Plan:  # fmt: skip
    """Check the arguments of a call and return its plan: a backward one for `grad_out`, where `shape` may replace x."""
    given = x if shape is None else grad_out
    parameters = (
        0 if grad_out is None else shape or 1, n, kernel, kernel if stride is None else stride, padding, dilation,
        1 if ceil_mode else 0, 1 if include_pad else 0,
        0 if divisor is None else _check.integer("divisor_override", divisor, 1),
    )  # fmt: skip
    key = _runtime.key(_dispatch._isa, np.ndarray, given, given if grad_out is None else grad_out, parameters)
    return _plans.get(key) or _new_plan(key, x, grad_out, shape, *parameters[1:])


def _new_plan(
    key: Any, x: Any, grad_out: Any, shape: Ints | None, n: int, kernel: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: int, include_pad: int, divisor: int,
) -> Plan:  # fmt: skip
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
    found = plan_of(axes, x, grad_out, shape, bool(include_pad), divisor)
    if key is not None and len(found.tables) < 1 << 16:
        if len(_plans) >= 1024:
            _plans.clear()
        _plans[key] = found
    return found


def adaptive(n: int, x: Any, grad_out: Any, shape: Ints | None, output_size: Any) -> Plan:
    """Return the plan of an adaptive pooling, as `plan` does; None keeps an axis."""
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
    return plan_of(axes, x, grad_out, shape)


def plan_of(axes: list[Axis], x: Any, grad_out: Any, shape: Ints, include_pad: bool = True, divisor: int = 0) -> Plan:
    """Return the plan for these axes; check `grad_out`, if there is one."""
    n = len(axes)
    out = shape[:-n] + tuple([a.out for a in axes])
    backward = grad_out is not None
    if backward:
        _check.array("grad_out", grad_out)
        _check.same_dtype(grad_out=grad_out, x=x)
        _check.same_shape("grad_out", grad_out, out)
    dtype = (grad_out if x is None else x).dtype
    packed = _tables(*[_NO_AXIS] * (3 - n), *axes, dtype, backward, include_pad, divisor)
    return Plan(_dispatch.kernels("pool", dtype).run, dtype, out, shape[-n:], math.prod(shape[:-n]), packed)


def global_axes(axes: Any, shape: Ints) -> int:
    """Return how many axes global pooling is over, by default all after N and C."""
    n = len(shape) - 2 if axes is None else _check.integer("axes", axes, 1, 3)
    if not 1 <= n <= 3:
        raise ValueError(f"x must have 3 to 5 axes (N, C and one to three more), got shape {shape}")
    return n


def flat(a: Any) -> Any:
    """Return a one-dimensional view, or copy where the kernels need one."""
    return (a if type(a) is np.ndarray and a.flags.carray else _check.contiguous(np.asarray(a))).ravel()


def forward(kind: int, x: Any, plan: Plan, out: Any, indices: Any = None) -> Array:
    """Return the maxima or averages; fill `indices`."""
    run, dtype, shape, _, planes, packed = plan
    result: Array = np.empty(shape, dtype) if out is None else _check.output("out", out, shape, dtype, x)
    if planes:
        buffer = result if out is None or result.flags.carray else np.empty(shape, dtype)
        run(kind, flat(x), None, None, indices, buffer.ravel(), packed, planes, _dispatch.threads, _dispatch.scratch)
        if buffer is not result:
            result[...] = buffer
    return result


def backward(kind: int, grad_out: Any, x: Any, shape: Ints, plan: Plan, indices: Any = None) -> Array:
    """Return the gradient of x, from x, or the indices of its maxima, or neither."""
    run, dtype, _, size, planes, packed = plan
    grad_x: Array = np.empty(shape, dtype)
    if indices is not None:
        _check.indices("indices", indices, plan.shape)
        kind, x, indices = SCATTER, None, flat(indices)
    if planes and run(
        kind, None if x is None else flat(x), flat(grad_out), indices, None, grad_x.ravel(), packed, planes,
        _dispatch.threads, _dispatch.scratch,
    ):  # fmt: skip
        _check.refuse_indices("indices", indices, size)
    return grad_x
