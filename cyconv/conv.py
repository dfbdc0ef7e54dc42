"""Convolution of images: conv2d and its gradients. Arguments are checked here and results allocated."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _check, _dispatch, _winograd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._check import Array, IntLike, Ints, PaddingLike, Pairs

_BORDERS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # padding_mode: numpy.pad's name
_ALGORITHMS = ("auto", "direct", "winograd")
_PLAIN = (1, 1, 0, 0, 1, 1)  # stride, padding, dilation


class ConvGradients(NamedTuple):
    """Gradients of a convolution; None where not asked for."""

    x: Array | None
    weight: Array | None
    bias: Array | None


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: IntLike = 1,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
) -> Array:
    """Convolve images with a set of kernels (cross-correlation: the kernels are not flipped).

    ``out[n, f, oy, ox] = bias[f] + sum over c, ky, kx of
    x[n, c, oy * stride - top + ky * dilation, ox * stride - left + kx * dilation] * weight[f, c, ky, kx]``

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, H, W) or (C, H, W)
        Images. Any strides; a copy is made of arrays that are not C-contiguous.
    weight : ndarray, shape (F, C / groups, KH, KW)
        Kernels, of the dtype of `x`.
    bias : ndarray, shape (F,), optional
        Added to each output channel.
    stride : int or (int, int)
        Step between windows, at least 1.
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "same_lower"
        Cells added around the image. "valid" adds none; "same" gives ceil(H / stride) rows and puts an odd cell at the
        end, as TensorFlow and ONNX (SAME_UPPER) do, and torch, which takes it for stride 1 only; "same_lower" puts it
        at the start. May be larger than the kernel.
    dilation : int or (int, int)
        Step between the taps of a kernel, at least 1.
    groups : int
        Number of groups of channels that are convolved independently; divides C and F.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the added cells hold. "reflect" takes padding less than the image, "circular" at most as large.
    activation : {None, "relu"}
        Applied to the result before it is stored. ReLU keeps NaN.
    out : ndarray, shape of the result, optional
        Where to write the result; must not overlap an input.
    algorithm : {"auto", "direct", "winograd"}
        "direct" is the plain sum. "winograd" computes 4x4 outputs at once with a quarter of the multiplications, and
        rounding errors that are up to five times larger; it exists for 3x3 kernels with stride and dilation 1. "auto"
        takes it where it is faster and has at least 32 input channels (of a group) to average its errors: by the shapes
        of one image and of the weight, the dtype and the instruction set alone. See docs/accuracy.md.

    Returns
    -------
    ndarray, shape (N, F, OH, OW) or (F, OH, OW)
        `out`, or a new array; ``OH = (H + top + bottom - dilation * (KH - 1) - 1) // stride + 1``.

    Raises
    ------
    TypeError
        For arrays that are not float32 or float64, mixed dtypes, parameters that are not integers.
    ValueError
        For shapes that do not fit each other, parameters out of range, an `out` that cannot take the result, an
        algorithm that does not exist for the layer.

    Notes
    -----
    The result is the same, bit for bit, for any number of threads, and that of an image does not depend on its batch.
    Only taps inside the image take part: zero padding never turns an inf of the image into a NaN.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    >>> weight = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    >>> cyconv.conv2d(x, weight)
    array([[[19., 25.],
            [37., 43.]]], dtype=float32)
    """
    if activation is not None:
        _check.one_of("activation", activation, (None, "relu"))
    (sh, sw), pads, (dh, dw), groups, size, winograd = _geometry(
        x, weight, stride, padding, dilation, groups, padding_mode, algorithm
    )
    if bias is None:
        if x.dtype != weight.dtype:
            _check.same_dtype(x=x, weight=weight)
    else:
        _check.array("bias", bias, 1)
        _check.same_dtype(x=x, weight=weight, bias=bias)
        _check.same_shape("bias", bias, weight.shape[:1])
        bias = _check.contiguous(bias)
    x4, batch = _check.batched(x, 4)
    shape = (x4.shape[0], weight.shape[0], *size)
    result: Array = _check.output("out", out, shape if batch else shape[1:], x.dtype, x, weight, bias)
    if shape[0] == 0:
        return result
    x4, ((top, _), (left, _)) = _fill_border(x4, pads, padding_mode)
    target = result if batch else result[None]
    buffer = target if out is None else _check.contiguous(target)
    x4, weight, relu = _check.contiguous(x4), _check.contiguous(weight), activation == "relu"
    geometry = sh, sw, top, left, dh, dw, groups
    if winograd and (algorithm != "auto" or _winograd.pays(shape[1] // groups, weight.shape[1], size, x.dtype)):
        for n in _winograd.convolve(x4, weight, False, bias, buffer, (top, left), groups, relu):
            _forward(x4[n], weight, bias, buffer[n], size, geometry, relu)
    else:
        _forward(x4, weight, bias, buffer, size, geometry, relu)
    if buffer is not target:
        target[...] = buffer
    return result


def conv2d_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    *,
    stride: IntLike = 1,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    wrt: tuple[str, ...] = ("x", "weight", "bias"),
    algorithm: str = "auto",
) -> ConvGradients:
    """Return the gradients of `conv2d`: given d loss / d out, those of x, weight and bias.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``conv2d(x, weight, ...)``
        Gradient of a scalar with respect to that result. With ``activation="relu"`` multiply it by ``out > 0`` first.
    x, weight : ndarray
        As given to `conv2d`.
    stride, padding, dilation, groups, padding_mode, algorithm
        As given to `conv2d`. The gradients of weight and bias are always direct sums.
    wrt : tuple of {"x", "weight", "bias"}
        Which gradients to compute.

    Returns
    -------
    ConvGradients
        New arrays ``(x, weight, bias)`` in the shapes of what they are the gradients of, None where not asked for.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`, and if `grad_out` has not the shape of its result.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.arange(9.0).reshape(1, 3, 3)
    >>> weight = np.arange(4.0).reshape(1, 1, 2, 2)
    >>> gradients = cyconv.conv2d_backward(np.ones((1, 2, 2)), x, weight)
    >>> gradients.weight
    array([[[[ 8., 12.],
             [20., 24.]]]])
    >>> gradients.bias
    array([4.])
    """
    wrt = _check.wrt(wrt)
    _check.array("grad_out", grad_out)
    (sh, sw), pads, (dh, dw), groups, size, winograd = _geometry(
        x, weight, stride, padding, dilation, groups, padding_mode, algorithm
    )
    _check.same_dtype(grad_out=grad_out, x=x, weight=weight)
    x4, batch = _check.batched(x, 4)
    shape = (x4.shape[0], weight.shape[0], *size)
    _check.same_shape("grad_out", grad_out, shape if batch else shape[1:])

    empty = shape[0] == 0
    make = np.zeros if empty else np.empty
    grad_bias = make(shape[1], x.dtype) if "bias" in wrt else None
    grad_weight = make(weight.shape, x.dtype) if "weight" in wrt else None
    if empty:
        return ConvGradients(np.empty(x.shape, x.dtype) if "x" in wrt else None, grad_weight, grad_bias)
    kernels, threads, scratch = _dispatch.kernels("conv", x.dtype), _dispatch.threads(), _dispatch.scratch
    grad_out = _check.contiguous(grad_out if batch else grad_out[None])
    if grad_bias is not None:
        kernels.grad_bias(grad_out, grad_bias, threads)
    padded, ((top, _), (left, _)) = _fill_border(x4, pads, padding_mode)
    geometry = sh, sw, top, left, dh, dw, groups
    if grad_weight is not None:
        padded = _check.contiguous(padded)
        suspect = kernels.grad_weight(padded, grad_out, grad_weight, *geometry, threads, scratch)
        if suspect and not np.isfinite(grad_out).all():
            grad_weight[...] = 0
            for tap, inside, outputs in _taps(padded.shape, weight.shape, size, geometry):
                part = np.empty(grad_weight[tap].shape, x.dtype)
                inputs = padded[inside].copy(), grad_out[outputs].copy()
                kernels.grad_weight(*inputs, part, *_PLAIN, groups, threads, scratch)
                grad_weight[tap] = part
    grad_x = None
    if "x" in wrt:
        grad_x, weight = np.empty(padded.shape, x.dtype), _check.contiguous(weight)
        channels = shape[1] // groups
        if winograd and (algorithm != "auto" or _winograd.pays(weight.shape[1], channels, padded.shape[2:], x.dtype)):
            for n in _winograd.convolve(grad_out, weight, True, None, grad_x, (top, left), groups, False):
                _grad_x(grad_out[n], weight, grad_x[n], size, geometry)
        else:
            _grad_x(grad_out, weight, grad_x, size, geometry)
        grad_x = _fold_border(grad_x, pads, padding_mode).reshape(x.shape)
    return ConvGradients(grad_x, grad_weight, grad_bias)


def _forward(x: Any, weight: Any, bias: Any, out: Any, size: Ints, geometry: Ints, relu: bool) -> None:
    """out = the direct sum, plus bias, rectified if asked for."""
    kernels, threads, scratch = _dispatch.kernels("conv", x.dtype), _dispatch.threads(), _dispatch.scratch
    if kernels.forward(x, weight, bias, out, *geometry, relu, threads, scratch) and not np.isfinite(weight).all():
        out[...] = 0 if bias is None else bias[:, None, None]
        for tap, inside, outputs in _taps(x.shape, weight.shape, size, geometry):
            part, inputs = np.empty(out[outputs].shape, x.dtype), (x[inside].copy(), weight[tap].copy())
            kernels.forward(*inputs, None, part, *_PLAIN, geometry[-1], False, threads, scratch)
            _add(out[outputs], part)
        if relu:
            np.maximum(out, 0, out=out)


def _grad_x(grad_out: Any, weight: Any, grad_x: Any, size: Ints, geometry: Ints) -> None:
    """grad_x = the direct sum."""
    kernels, threads, scratch = _dispatch.kernels("conv", grad_x.dtype), _dispatch.threads(), _dispatch.scratch
    suspect = kernels.grad_x(grad_out, weight, grad_x, *geometry, threads, scratch)
    if suspect and not np.isfinite(weight).all():
        grad_x[...] = 0
        for tap, inside, outputs in _taps(grad_x.shape, weight.shape, size, geometry):
            part, inputs = np.empty(grad_x[inside].shape, grad_x.dtype), (grad_out[outputs].copy(), weight[tap].copy())
            kernels.grad_x(*inputs, part, *_PLAIN, geometry[-1], threads, scratch)
            _add(grad_x[inside], part)


def _geometry(
    x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any, algorithm: Any
) -> tuple[Ints, Pairs, Ints, int, Ints, bool]:
    """Check what forward and backward have in common.

    Return stride, padding, dilation, groups, (OH, OW), and whether Winograd's algorithm exists and is allowed.
    """
    _check.array("x", x)
    _check.array("weight", weight)
    # Only exact types may be looked up: 1 == 1.0 == True, but only the first is a stride.
    known = (
        type(stride) is type(dilation) is type(groups) is int
        and (type(padding) is int or type(padding) is str)
        and type(padding_mode) is type(algorithm) is str
    )
    plan = _known_plan if known else _plan
    return plan(x.shape, weight.shape, stride, padding, dilation, groups, padding_mode, algorithm)


def _plan(
    x: Ints, weight: Ints, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any, algorithm: Any
) -> tuple[Ints, Pairs, Ints, int, Ints, bool]:
    """What `_geometry` returns, from the shapes of x and weight."""
    _check.spatial("x", x, 2)
    groups = _check.integer("groups", groups, 1)
    _check.weight(x, weight, groups, 2)
    size, kernel = x[-2:], weight[2:]
    stride = _check.ints("stride", stride, 2, 1)
    dilation = _check.ints("dilation", dilation, 2, 1)
    pads = _check.padding(padding, size, kernel, stride, dilation)
    _check.one_of("padding_mode", padding_mode, ("zeros", *_BORDERS))
    _check.border(padding_mode, pads, size)
    _check.one_of("algorithm", algorithm, _ALGORITHMS)
    winograd = _winograd.exists(kernel, stride, dilation)
    if algorithm == "winograd" and not winograd:
        raise ValueError(
            'algorithm="winograd" is for 3x3 kernels with stride 1 and dilation 1, got a kernel of '
            f"{kernel[0]}x{kernel[1]}, stride={stride}, dilation={dilation}"
        )
    size = _check.output_size(size, kernel, stride, pads, dilation)
    return stride, pads, dilation, groups, size, winograd and algorithm != "direct"


_known_plan = lru_cache(maxsize=1024)(_plan)


def _taps(x: Ints, weight: Ints, size: Ints, geometry: Ints) -> Iterator[tuple[Any, Any, Any]]:
    """Yield for each tap the slices of the weight, of the x it reads without padding, and of the outputs it adds to.

    The kernels multiply padding as zeros, which is wrong only where the other factor is inf or NaN. That is rare and
    easily seen in their result; it is then summed again as 1x1 convolutions over the real taps alone.
    """
    for taps in np.ndindex(*weight[2:]):
        inside, outputs = [slice(None)] * 2, [slice(None)] * 2
        for k, m, o, s, before, d in zip(taps, x[2:], size, geometry[:2], geometry[2:4], geometry[4:6], strict=True):
            start = k * d - before
            first, last = max(0, -(start // s)), min(o, (m - 1 - start) // s + 1)
            outputs.append(slice(first, max(first, last)))
            inside.append(slice(first * s + start, max(first, last) * s + start, s))
        if all(o.start < o.stop for o in outputs[2:]):
            yield (slice(None), slice(None), *(slice(k, k + 1) for k in taps)), tuple(inside), tuple(outputs)


def _add(total: Any, part: Any) -> None:
    """Total += part, without NumPy's warnings: a kernel has none."""
    with np.errstate(invalid="ignore", over="ignore"):
        total += part


def _border_indices(size: Ints, pads: Pairs, mode: str) -> list[np.ndarray]:
    """For each axis, the position in the image of every position of the padded image."""
    return [np.pad(np.arange(m), pair, mode=_BORDERS[mode]) for m, pair in zip(size, pads, strict=True)]  # type: ignore[call-overload]


def _fill_border(x: Array, pads: Pairs, mode: str) -> tuple[Array, Pairs]:
    """Return x padded from the image itself, and the padding that is left to the kernel: zeros are."""
    if mode == "zeros":
        return x, pads
    rows, columns = _border_indices(x.shape[2:], pads, mode)
    return x[:, :, rows[:, None], columns], ((0, 0), (0, 0))


def _fold_border(grad: Any, pads: Pairs, mode: str) -> Any:
    """The gradient of `_fill_border`: there each cell was read from a place in the image, so now it is added to it."""
    if mode == "zeros":
        return grad
    for axis, (before, after) in ((2, pads[0]), (3, pads[1])):
        grad = np.moveaxis(grad, axis, 0)
        m = len(grad) - before - after
        folded = grad[before : before + m].copy()
        (indices,) = _border_indices((m,), ((before, after),), mode)
        for i in (*range(before), *range(before + m, before + m + after)):
            folded[indices[i]] += grad[i]
        grad = np.moveaxis(folded, 0, axis)
    return np.ascontiguousarray(grad)
