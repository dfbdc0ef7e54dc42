"""All validation of arguments: the one place that raises for bad input, with messages that show it.

Nothing is converted silently: arrays are native float32 or float64, parameters are integers.
`n` is the number of spatial axes (2 for images); sizes, strides and the like are tuples of n ints, padding is a tuple
of n pairs (before, after).
"""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.float64]"
Ints: TypeAlias = "tuple[int, ...]"
Pairs: TypeAlias = "tuple[tuple[int, int], ...]"
IntLike: TypeAlias = "int | Sequence[int]"
PaddingLike: TypeAlias = "int | str | Sequence[int | tuple[int, int]]"

C_INT_MAX = 2**31 - 1
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_OVERLAP_STEPS: Any = 1000  # decides all but contrived cases, which count as overlapping
_AXES = ("depth", "height", "width")


def array(name: str, value: Any, ndim: int | None = None) -> Array:
    """Return `value` if it is a native float32 or float64 array (of `ndim` axes), else raise TypeError (ValueError)."""
    if type(value) is not np.ndarray and (not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray)):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(value).__module__}.{type(value).__qualname__}")
    if value.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32 or float64 in native byte order, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {value.shape}")
    if value.size > C_INT_MAX and max(value.shape) > C_INT_MAX:
        raise ValueError(f"{name} has an axis longer than {C_INT_MAX}: shape {value.shape}")
    return value


def same_dtype(**arrays: Array | None) -> None:
    """Raise TypeError unless all arrays (None: absent) have one dtype."""
    given = {name: a.dtype for name, a in arrays.items() if a is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in given.items())
        raise TypeError(f"arrays must have one dtype (nothing is converted silently): {listed}")


def same_shape(name: str, value: Array, shape: Sequence[int]) -> None:
    """Raise ValueError unless `value` has the shape."""
    if value.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {value.shape}")


def contiguous(a: Array) -> Array:
    """Return `a` if it is C-contiguous and aligned, else a copy that is."""
    flags = a.flags
    return a if flags.carray or (flags.c_contiguous and flags.aligned) else a.copy(order="C")


def spatial(name: str, shape: Ints, n: int) -> bool:
    """Check a shape ([N,] C, *spatial); return whether it has the batch axis. Only the batch may be empty."""
    if len(shape) != n + 2 and len(shape) != n + 1:
        axes = ", ".join(("N", "C", *("D", "H", "W")[-n:]))
        raise ValueError(f"{name} must have {n + 2} axes ({axes}), or {n + 1} without the batch, got shape {shape}")
    if 0 in shape[-n - 1 :]:
        raise ValueError(f"{name} has an empty axis (only the batch may be empty): shape {shape}")
    return len(shape) == n + 2


def batched(x: Array, ndim: int) -> tuple[Array, bool]:
    """Return x with a batch axis, `ndim` axes in all, and whether it had one."""
    return (x, True) if x.ndim == ndim else (x[None], False)


def integer(name: str, value: Any, minimum: int, maximum: int = C_INT_MAX) -> int:
    """Return an integer (no bool, no float) of minimum..maximum as int."""
    if type(value) is int:
        number = value
    else:
        try:
            if isinstance(value, (bool, np.bool_, np.ndarray)):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} must be in {minimum}..{maximum}, got {number}")
    return number


def ints(name: str, value: Any, n: int, minimum: int) -> Ints:
    """Return an int, or a tuple or list of n ints, as a tuple of n ints of at least `minimum`."""
    if isinstance(value, (tuple, list)):
        if len(value) != n:
            raise ValueError(f"{name} must be an integer or {n} of them, got {value!r}")
        return tuple([integer(name, v, minimum) for v in value])
    return (integer(name, value, minimum),) * n


def padding(value: Any, size: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> Pairs:
    """Return any form of padding as n pairs (before, after).

    "valid" is none. "same" gives ceil(size / stride) outputs, an odd cell goes to the end (TensorFlow, ONNX SAME_UPPER,
    and torch, which allows it for stride 1 only); "same_lower" puts it at the start (ONNX SAME_LOWER).
    """
    n = len(size)
    if isinstance(value, str):
        if value not in ("valid", "same", "same_lower"):
            raise ValueError(f'padding must be integers, "valid", "same" or "same_lower", got {value!r}')
        if value == "valid":
            return ((0, 0),) * n
        pairs = []
        for m, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max(((m - 1) // s) * s + (k - 1) * d + 1 - m, 0)
            less = total // 2
            pairs.append((less, total - less) if value == "same" else (total - less, less))
        return tuple(pairs)
    if isinstance(value, (tuple, list)):
        if len(value) != n:
            raise ValueError(f"padding must have one entry for each of {n} axes, got {value!r}")
        return tuple([_pair(v) for v in value])
    both = integer("padding", value, 0)
    return ((both, both),) * n


def _pair(value: Any) -> tuple[int, int]:
    before, after = ints("padding", value, 2, 0)
    return before, after


@lru_cache(maxsize=1024)
def output_size(
    size: Ints, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints, ceil_mode: bool = False
) -> Ints:
    """Return the output's spatial shape: (size + before + after - dilation * (kernel - 1) - 1) // stride + 1.

    With ceil_mode the division rounds up, but a last window that would start in the end padding is dropped.
    """
    result: list[int] = []
    for m, k, s, (before, after), d in zip(size, kernel, stride, padding, dilation, strict=True):
        span = m + before + after - d * (k - 1) - 1
        if span < 0 or m + before + after > C_INT_MAX:
            _refuse_size(len(size), len(result), m, k, before, after, d)
        o = span // s + 1
        if ceil_mode and span % s and o * s < m + before:
            o += 1
        result.append(o)
    return tuple(result)


def _refuse_size(n: int, axis: int, m: int, k: int, before: int, after: int, d: int) -> None:
    name, padded = _AXES[axis - n], f"{m} + {before} + {after}"
    if m + before + after > C_INT_MAX:
        raise ValueError(f"the padded {name} is too long: {padded} = {m + before + after} > {C_INT_MAX}")
    raise ValueError(
        f"the output would have no {name}: padded input {padded} = {m + before + after}, "
        f"kernel extent {d} * ({k} - 1) + 1 = {d * (k - 1) + 1}"
    )


def shape(name: str, value: Any, n: int) -> Ints:
    """Return the shape of an input, ([N,] C, *spatial), as a tuple of ints. Only the batch may be empty."""
    if not isinstance(value, (tuple, list)) or len(value) not in (n + 1, n + 2):
        raise ValueError(f"{name} must be a tuple of {n + 1} or {n + 2} integers, got {value!r}")
    batch = len(value) - n - 1
    return tuple([integer(name, v, 0 if i < batch else 1) for i, v in enumerate(value)])


def indices(name: str, value: Any, shape: Sequence[int] | None = None) -> None:
    """Raise TypeError unless `value` is an int64 array, ValueError unless it has the shape."""
    if not isinstance(value, np.ndarray) or value.dtype != np.int64:
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be an int64 array, got {got}")
    if shape is not None:
        same_shape(name, value, shape)


def inside(name: str, value: Any, size: Ints) -> None:
    """Raise ValueError unless all indices lie in a plane of this size."""
    if value.min() < 0 or value.max() >= math.prod(size):
        refuse_indices(name, value, size)


def refuse_indices(name: str, value: Any, size: Ints) -> None:
    """Raise the ValueError for indices that point outside a plane."""
    raise ValueError(f"{name} must lie inside the plane {size}, got {value.min()} .. {value.max()}")


def output(name: str, out: Any, shape: Ints, dtype: np.dtype[Any], *inputs: Array | None) -> Any:
    """Return a new array, or `out` if the result may be written to it. A refused `out` is untouched."""
    if out is None:
        return np.empty(shape, dtype)
    if type(out) is not np.ndarray or out.dtype is not dtype:
        array(name, out)
        if out.dtype != dtype:
            raise TypeError(f"{name} must be {dtype} like the input, got {out.dtype}")
    if out.shape != shape:
        same_shape(name, out, shape)
    flags = out.flags
    if not flags.writeable:
        raise ValueError(f"{name} is read-only")
    if not flags.c_contiguous and _overlaps_itself(out):
        raise ValueError(f"elements of {name} share memory: shape {out.shape}, strides {out.strides}")
    for a in inputs:
        if a is None or (a is not out and flags.owndata and a.flags.owndata):
            continue  # two arrays that own their memory share none
        if np.may_share_memory(out, a, max_work=_OVERLAP_STEPS):
            raise ValueError(f"{name} must not overlap an input")
    return out


def _overlaps_itself(a: Array) -> bool:
    """Whether two elements may share bytes; never for a view made by slicing or transposing."""
    extent = a.itemsize
    for stride, length in sorted((abs(s), m) for s, m in zip(a.strides, a.shape, strict=True) if m > 1):
        if stride < extent:
            return True
        extent += stride * (length - 1)
    return False


def one_of(name: str, value: Any, allowed: Collection[str | None]) -> None:
    """Raise unless `value` is one of the allowed strings (or None, if that is allowed)."""
    text = isinstance(value, str)
    if not (text or value is None) or value not in allowed:
        raise (ValueError if text else TypeError)(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        )


def wrt(value: Any) -> tuple[str, ...]:
    """Return the names of the gradients asked for: some of "x", "weight", "bias"."""
    if not isinstance(value, (tuple, list)) or [v for v in value if not isinstance(v, str)]:
        raise TypeError(f'wrt must be a tuple of names out of "x", "weight", "bias", got {value!r}')
    for v in value:
        if v not in ("x", "weight", "bias"):
            one_of("wrt", v, ("x", "weight", "bias"))
    return tuple(value)


def weight(x: Ints, shape: Ints, groups: int, n: int) -> None:
    """Check the weight's shape (F, C/groups, *kernel) against that of x, which has been checked."""
    channels = x[-n - 1]
    if len(shape) != n + 2 or 0 in shape:
        axes = ", ".join(("F", "C/groups", *("KD", "KH", "KW")[-n:]))
        raise ValueError(f"weight must have {n + 2} axes ({axes}), none of them empty, got shape {shape}")
    if shape[1] * groups != channels:
        raise ValueError(
            f"x has {channels} channels, but weight of shape {shape} with groups={groups} takes {shape[1]} * {groups}"
        )
    if shape[0] % groups:
        raise ValueError(f"groups={groups} must divide the {shape[0]} output channels of weight, shape {shape}")


def border(mode: str, padding: Pairs, size: Ints) -> None:
    """Check that the image can fill the padding: less than its size for reflect, at most its size for circular."""
    if mode in ("reflect", "circular"):
        for m, pair in zip(size, padding, strict=True):
            if max(pair) > m - (mode == "reflect"):
                bound = "less than" if mode == "reflect" else "at most"
                raise ValueError(f'padding_mode="{mode}" takes padding {bound} the size {m}, got {pair}')
